"""Any loss on every group of columns, and the divergence of ABE, arXiv:1804.00382."""

import math

import pytest
import torch

from dml.losses.contrastive import ContrastiveLoss
from dml.losses.lifted import LiftedLoss
from dml.losses.memory import CrossBatchMemory
from dml.losses.per_group import PerGroupLoss
from dml.losses.proxy_nca import ProxyNCALoss
from tests import oracles
from tests.losses import Batch, by_groups
from tests.losses.by_anchors import spheric
from tests.losses.conftest import LossContract


def alike(dim):
    """As many groups of one width as there can be of two, at least."""
    return (dim // 2,) * 2 if dim % 2 == 0 else (1,) * dim


class TestPerGroup(LossContract):
    by_blocks = False  # those of the inner loss are its own
    variants = ({}, {"normalize": False}, {"divergence": 0.7, "divergence_margin": 1.3})

    def build(self, options, dim):
        return PerGroupLoss(loss=ContrastiveLoss(), groups=alike(dim), **options)

    def oracle(self, loss, options, embeddings, labels):
        parts = by_groups.columns(embeddings, loss.groups)
        seen = [spheric(part) if options.get("normalize", True) else part for part in parts]
        value = sum(oracles.contrastive(part, labels) for part in seen)
        apart = by_groups.apart(embeddings, loss.groups, options.get("divergence_margin", 1.0))
        return value + options.get("divergence", 0.0) * apart


def test_learners_of_an_image_by_hand():
    # Between the learners 90 degrees in the first image, 0 in the second: margins of 3 leave 1 and 3.
    x = torch.tensor([[2.0, 0, 0, 1], [5, 0, 1, 0]], dtype=torch.float64)
    loss = PerGroupLoss(loss=ContrastiveLoss(margin=1e-3), groups=[2, 2], divergence=10, divergence_margin=3)
    apart = 2.0  # the squared distance of 90 degrees, of the second learner's positive pair
    assert loss(x, torch.tensor([0, 0])).item() == pytest.approx(apart + 10 * (1 + 3) / 2, rel=1e-12)


def test_each_group_has_weights_of_its_own():
    loss = PerGroupLoss(loss=ProxyNCALoss(embedding_dim=3, num_classes=4), groups=[3, 3]).double()
    x, labels = Batch((3, 2, 2, 1), 6).make(0)
    loss(x, labels).backward()
    first, second = (each.proxies.grad for each in loss.losses)
    assert len(list(loss.parameters())) == 2 and not torch.equal(first, second)


def test_inside_of_a_memory_earlier_batches_are_no_anchors():
    inner = PerGroupLoss(loss=ContrastiveLoss(), groups=[2, 2], divergence=1.0)
    memory = CrossBatchMemory(loss=inner, size=50, start_step=0, embedding_dim=4).double()
    earlier, x = Batch((5, 4, 3), 4).make(0), Batch((5, 4, 3), 4).make(1)
    memory(*earlier)
    both, classes = torch.cat([x[0], earlier[0]]), torch.cat([x[1], earlier[1]])
    parts = map(spheric, by_groups.columns(both, (2, 2)))
    expected = sum(oracles.contrastive(part, classes, anchors=12) for part in parts)
    expected = expected + by_groups.apart(both, (2, 2), anchors=12)
    assert memory(*x).item() == pytest.approx(expected.item(), rel=1e-10)


def test_a_memory_around_a_loss_without_anchors_is_refused():
    loss = PerGroupLoss(loss=LiftedLoss(), groups=[2, 2])
    with pytest.raises(ValueError, match=r"loss\.loss=LiftedLoss is not possible: .* whose forward takes anchors"):
        CrossBatchMemory(loss=loss, embedding_dim=4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"divergence": -1.0}, r"loss\.divergence=-1"),
        ({"divergence_margin": 0.0}, r"loss\.divergence_margin=0"),
        ({"divergence": 1.0, "groups": [2, 3]}, r"loss\.divergence=1\.0 .* widths, \[2, 3\]"),
        ({"groups": []}, r"loss\.groups=\[\]"),
    ],
)
def test_what_is_not_possible_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        PerGroupLoss(**{"loss": ContrastiveLoss(), "groups": [2, 2], **given})


def test_nan_in_one_learner_alone_is_nan():
    loss = PerGroupLoss(loss=ContrastiveLoss(), groups=[1, 1], divergence=1.0)
    for place in range(8):
        x = torch.randn(4, 2)
        x.view(-1)[place] = math.nan
        assert loss(x, torch.tensor([0, 0, 1, 1])).isnan()
