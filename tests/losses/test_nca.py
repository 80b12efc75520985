"""Neighbourhood components analysis, Goldberger et al. (2004)."""

import math

import pytest
import torch

from dml.losses.nca import NCALoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestNCA(LossContract):
    variants = ({}, {"scale": 20.0}, {"normalize": False}, {"scale": 0.1, "normalize": False})
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return NCALoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.nca(embeddings, labels, **options)


def test_three_samples_by_hand():
    # D of the pair is 3, its members have the distances 4 and 5 to the only negative.
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    value = NCALoss(scale=0.1, normalize=False)(x, torch.tensor([0, 0, 1]))
    terms = [-math.log(math.exp(-0.9) / (math.exp(-0.9) + math.exp(-0.1 * d**2))) for d in (4, 5)]
    assert value.item() == pytest.approx(sum(terms) / 2, rel=1e-12)


def test_anchors_whose_positives_are_far_beyond_their_negatives_keep_their_loss():
    # e^-240 is nothing in float32.
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    value = NCALoss(scale=60)(x, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((240 + math.log(2)) / 2, rel=1e-5)


@pytest.mark.parametrize(("key", "value"), [("scale", 0.0), ("scale", -1.0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        NCALoss(**{key: value})
