"""Tuplet margin loss, Yu and Tao (2019)."""

import math

import pytest
import torch

from dml.losses.tuplet_margin import TupletMarginLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestTupletMargin(LossContract):
    variants = ({}, {"margin": 30.0, "scale": 10.0}, {"margin": 0.0, "scale": 5.0})
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return TupletMarginLoss(**options)

    def leaves_open(self, loss, embeddings):
        # The sine of the angle between opposite members is the root of a rounding.
        z = torch.nn.functional.normalize(embeddings.double(), dim=1)
        return (z @ z.T).min() < -1 + 1e-12

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.tuplet_margin(embeddings, labels, **options)


def test_three_samples_by_hand():
    # The pair stands 60 degrees apart, the negative at 90 and 30 degrees from its members.
    angles = torch.tensor([0.0, 60.0, 90.0], dtype=torch.float64).deg2rad()
    x = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    value = TupletMarginLoss(margin=15, scale=4)(x, torch.tensor([0, 0, 1]))
    aim = math.cos(math.radians(45))
    terms = [math.log1p(math.exp(4 * (math.cos(math.radians(other)) - aim))) for other in (90, 30)]
    assert value.item() == pytest.approx(sum(terms) / 2, rel=1e-12)


@pytest.mark.parametrize(("key", "value"), [("margin", -1.0), ("scale", 0.0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        TupletMarginLoss(**{key: value})
