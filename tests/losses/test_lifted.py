"""Lifted structured loss, equation 3 of arXiv:1909.09427."""

import math

import pytest
import torch

from dml.losses.lifted import LiftedLoss
from tests import oracles
from tests.losses import SMOOTH, value_and_gradient
from tests.losses.conftest import LossContract


class TestLifted(LossContract):
    variants = ({}, {"margin": 0.3}, {"margin": 3.0})
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return LiftedLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return oracles.lifted(embeddings, labels, **options)


def test_one_pair_by_hand():
    # D of the pair is 3, its members have the distances 4 and 5 to the only negative.
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    value = LiftedLoss(margin=2.0)(embeddings, torch.tensor([0, 0, 1]))
    term = math.log(math.exp(2 - 4) + math.exp(2 - 5)) + 3
    assert value.item() == pytest.approx(term**2 / 2, rel=1e-6)


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_large_distances_do_not_underflow(scale):
    # exp(-D) is zero in float32 from D = 104 on; embeddings that are not normalised get there early.
    embeddings, labels = SMOOTH["unequal"].make(0)
    embeddings = embeddings.float() * scale
    value, gradient = value_and_gradient(LiftedLoss(), embeddings, labels)
    torch.testing.assert_close(value.double(), oracles.lifted(embeddings, labels), rtol=1e-4, atol=0)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("margin", [0.0, -1.0])
def test_margins_that_are_not_positive_are_refused(margin):
    with pytest.raises(ValueError, match=r"loss\.margin\b"):
        LiftedLoss(margin=margin)


def test_arguments_have_names():
    with pytest.raises(TypeError):
        LiftedLoss(1.0)
