"""Hard-aware deeply cascaded embedding, arXiv:1611.05720."""

import itertools
import math

import pytest
import torch

from dml.losses.hdc import HDCLoss, _all_pairs
from tests.losses import SMOOTH, Batch, by_groups
from tests.losses.conftest import LossContract


def halves(dim):
    """Two groups, or one where there is one column alone."""
    return (dim // 2, dim - dim // 2) if dim > 1 else (1,)


class TestHDC(LossContract):
    variants = ({}, {"ratios": (0.5, 0.3), "margin": 0.7, "factor": 2.0}, {"ratios": (0.7, 0.5), "cascaded": True})
    empty_batches = ((0,),)

    def options(self, options, dim):
        return {**options, "ratios": options.get("ratios", (1.0, 0.5))[: len(halves(dim))]}

    def build(self, options, dim):
        return HDCLoss(groups=halves(dim), **self.options(options, dim))

    def oracle(self, loss, options, embeddings, labels):
        return by_groups.hdc(loss, embeddings, labels, **self.options(options, embeddings.shape[1]))

    def near(self, loss, options, embeddings, labels):
        options = self.options(options, embeddings.shape[1])
        return lambda x: by_groups.hdc(loss, x, labels, **options, held=embeddings)

    def stops_gradients(self, options):
        return True

    def test_order_of_the_batch_does_not_matter(self, options, cases):
        if not options.get("cascaded"):
            super().test_order_of_the_batch_does_not_matter(options, cases)
            return
        # Which of equally hard pairs the next level sees is by order, and of one column all are.
        for loss, embeddings, labels in cases({name: batch for name, batch in SMOOTH.items() if batch.dim > 3}):
            order = self.permutation(labels)
            torch.testing.assert_close(loss(embeddings[order], labels[order]), loss(embeddings, labels))


def test_pairs_by_hand():
    # Level 1 has unit vectors at 0, 60, 90, 180 degrees; level 2 at 0, 90, 45, 45.
    def at(*degrees):
        return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])

    x, labels = torch.cat([3 * at(0, 60, 90, 180), at(0, 90, 45, 45)], dim=1), torch.tensor([0, 0, 1, 1])

    def squared(degrees):
        return 2 - 2 * math.cos(math.radians(degrees))

    # All pairs: positives 60 and 90 degrees; of the negatives only that of 30 degrees is within the margin.
    first = (squared(60) + squared(90) + 10 * (1 - squared(30))) / (2 * (2 + 2))
    # Half of them: of the positives that of 90 degrees alone, as the other's distance is 0, and int(0.5 * 1) is none;
    # two of the four negatives, all of 45 degrees.
    second = 2 * 10 * (1 - squared(45)) / (2 * 2 * 2)
    value = HDCLoss(groups=[2, 2], ratios=[1.0, 0.5])(x.double(), labels)
    assert value.item() == pytest.approx(first + second, rel=1e-6)


def _listed(pairs):
    return zip(pairs.first[pairs.real].tolist(), pairs.second[pairs.real].tolist(), strict=True)


def test_a_cascade_chooses_from_what_the_level_before_has_kept():
    x, labels = Batch((6, 5, 4), 6).make(0)
    groups, ratios = (3, 3), (0.4, 0.5)
    apart = HDCLoss(groups=groups, ratios=ratios)
    within = HDCLoss(groups=groups, ratios=ratios, cascaded=True)
    first, second = (part / part.norm(dim=1, keepdim=True) for part in x.split(3, dim=1))
    kept = within._hardest(first, _all_pairs(labels), 0.4)
    of_these = within._hardest(second, kept, 0.5)
    for pairs, earlier in zip(of_these, kept, strict=True):
        assert {*_listed(pairs)} < {*_listed(earlier)} < {*itertools.combinations(range(15), 2)}
    assert within(x, labels) != apart(x, labels)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ratios": [1.0]}, r"loss\.ratios=\[1\.0\] is not possible: it must be a share .* each of the 2 groups"),
        ({"ratios": [1.0, 0.0]}, r"loss\.ratios="),
        ({"groups": [], "ratios": []}, r"loss\.groups=\[\]"),
        ({"groups": [2, 0]}, r"loss\.groups=\[2, 0\]"),
        ({"margin": 0.0}, r"loss\.margin=0"),
        ({"factor": -1.0}, r"loss\.factor=-1"),
    ],
)
def test_what_is_not_possible_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        HDCLoss(**{"groups": [2, 2], "ratios": [1.0, 0.5], **given})


def test_embeddings_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"loss\.groups=\[2, 2\] .* add up to the embeddings' 5"):
        HDCLoss(groups=[2, 2], ratios=[1, 1])(torch.randn(4, 5), torch.arange(4))
