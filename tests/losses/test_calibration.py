"""Calibration of similarities, arXiv:2110.01445, and the threshold-consistent margin, arXiv:2307.04047."""

import pytest
import torch

from dml.losses.calibration import CalibrationLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestCalibration(LossContract):
    variants = ({}, {"neg_margin": 0.47, "pos_weight": 0.3, "neg_weight": 2.0})
    empty_batches = ((0,),)
    labels_that_count = (0, 0, 1, 1, 0)

    def build(self, options, dim):
        return CalibrationLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.calibration(embeddings, labels, **options)


def test_by_hand():
    # Cosines 0.6 and 0.8 in the two pairs; 0, 0.8, -0.8 and 0.6 between them, of which one is above 0.6.
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [-0.6, 0.8]], dtype=torch.float64)
    value = CalibrationLoss(pos_weight=1, neg_weight=10)(x, torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx((0.3 + 0.1) / 2 + 10 * 0.2, rel=1e-12)


@pytest.mark.parametrize("key", ["pos_weight", "neg_weight"])
def test_what_is_not_possible_is_refused(key):
    with pytest.raises(ValueError, match=rf"loss\.{key}=-1"):
        CalibrationLoss(**{key: -1.0})
