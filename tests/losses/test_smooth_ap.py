"""Smooth-AP, arXiv:2007.12163."""

import pytest
import torch

from dml.losses.smooth_ap import SmoothAPLoss
from tests.losses import by_ranks
from tests.losses.conftest import LossContract


class TestSmoothAP(LossContract):
    variants = ({}, {"include_self": True}, {"temperature": 0.5})
    empty_batches = ((2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        return SmoothAPLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_ranks.smooth_ap(embeddings, labels, **options)


# Seen from the first sample, at 0 degrees: its positives at 20 and 60, the negatives at 40 and 80.
ANGLES = torch.tensor([0.0, 20, 40, 60, 80], dtype=torch.float64).deg2rad()
X = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
LABELS = torch.tensor([0, 0, 1, 0, 2])


def test_at_a_low_temperature_it_is_the_average_precision():
    # The positives are the first and the third of the list.
    value = SmoothAPLoss(temperature=1e-4)(X, LABELS, anchors=1)
    assert value.item() == pytest.approx(1 - (1 + 2 / 3) / 2, rel=1e-6)
    # With the anchor itself as the first hit: (1 + 1 + 3/4) / 3.
    value = SmoothAPLoss(temperature=1e-4, include_self=True)(X, LABELS, anchors=1)
    assert value.item() == pytest.approx(1 - (1 + 1 + 3 / 4) / 3, rel=1e-6)


def test_one_class_is_perfect():
    x = torch.randn(5, 3, requires_grad=True)
    assert SmoothAPLoss()(x, torch.zeros(5, dtype=torch.int64)).abs() < 1e-6


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        SmoothAPLoss(**{key: value})
