"""Group loss, arXiv:1912.00385."""

import pytest
import torch
from torch.nn import functional as F

from dml.losses.group import GroupLoss
from tests.losses import Batch, by_proxies
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestGroup(LossContract):
    by_blocks = False
    variants = (
        {},
        {"iterations": 3, "temperature": 2.0, "anchors_per_class": 1},
        {"iterations": 0, "anchors_per_class": 0, "ce_weight": 0.3},
    )

    def build(self, options, dim):
        torch.manual_seed(100)  # no seed of a batch: the weights would be its embeddings
        return GroupLoss(embedding_dim=dim, num_classes=CLASSES, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.group(loss, embeddings, labels, **options)

    def permutation(self, labels):
        # Which members are anchors depends on their order, so only whole classes change places.
        return torch.sort(-labels, stable=True).indices


def test_its_weights():
    loss = GroupLoss(embedding_dim=5, num_classes=3)
    assert {name: tuple(weight.shape) for name, weight in loss.named_parameters()} == {
        "classifier.weight": (3, 5),
        "classifier.bias": (3,),
    }


def test_without_anchors_and_iterations_it_is_cross_entropy_twice():
    x, labels = Batch((3, 2), 4).make(0)
    loss = GroupLoss(embedding_dim=4, num_classes=2, anchors_per_class=0, iterations=0, temperature=1.0).double()
    expected = 2 * F.cross_entropy(loss.classifier(x), labels)
    torch.testing.assert_close(loss(x, labels), expected, rtol=1e-9, atol=0)


def test_it_needs_one_member_more_than_anchors():
    assert [GroupLoss(embedding_dim=2, num_classes=2, anchors_per_class=n).min_samples_per_class for n in (0, 3)] == [
        1,
        4,
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_classes", 0), ("anchors_per_class", -1), ("temperature", 0.0), ("iterations", -1), ("ce_weight", -1.0)],
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        GroupLoss(**{"embedding_dim": 3, "num_classes": CLASSES, key: value})


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        GroupLoss(embedding_dim=3, num_classes=CLASSES)(torch.randn(2, 3), torch.tensor([0, CLASSES]))
