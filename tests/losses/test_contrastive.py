"""Contrastive loss, equation 1 of arXiv:1909.09427."""

import pytest
import torch

from dml.losses import contrastive
from dml.losses.contrastive import ContrastiveLoss
from tests import oracles
from tests.losses import Batch, assert_gradient_close, value_and_gradient
from tests.losses.conftest import LossContract


class TestContrastive(LossContract):
    variants = ({}, {"margin": 0.3}, {"margin": 5.0}, {"margin": 0.5, "hinge": "squared"})
    empty_batches = ((3,),)

    def build(self, options, dim):
        return ContrastiveLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return oracles.contrastive(embeddings, labels, **options)


class TestContrastiveOfManyPairs(TestContrastive):
    """Where too many pairs have a term to list them."""

    @pytest.fixture(autouse=True)
    def none_are_few(self, monkeypatch):
        monkeypatch.setattr(contrastive, "_FEW", 0)


def test_three_samples_by_hand():
    # Pairs: 0-1 positive with D = 3, 0-2 negative with D = 4, 1-2 negative with D = 5. Margin 4.5.
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    value = ContrastiveLoss(margin=4.5)(embeddings, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((9 + 0.25 + 0) / 3, rel=1e-6)


def test_gradient_at_equal_positives_is_exact():
    # The squared distance is smooth at zero, so the twins' gradient exists, and is that of the other pairs.
    embeddings, labels = Batch((3, 3, 2), 3, 1.0, (1, 2)).make(0)
    gradient = value_and_gradient(ContrastiveLoss(), embeddings, labels)[1]
    expected = oracles.numerical_gradient(lambda x: oracles.contrastive(x, labels), embeddings, 1e-6)
    assert_gradient_close(gradient, expected)


@pytest.mark.parametrize("margin", [0.0, -1.0])
def test_margins_that_are_not_positive_are_refused(margin):
    with pytest.raises(ValueError, match=r"loss\.margin\b"):
        ContrastiveLoss(margin=margin)


def test_arguments_have_names():
    with pytest.raises(TypeError):
        ContrastiveLoss(1.0)
