"""N-pair loss, equation 4 of arXiv:1909.09427."""

import math

import pytest
import torch

from dml.losses.npair import NPairLoss
from tests import oracles
from tests.losses import SMOOTH, TIED, assert_gradient_close, value_and_gradient
from tests.losses.conftest import LossContract


class TestNPair(LossContract):
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))
    labels_that_count = (0, 1, 1, 0)

    def build(self, options, dim):
        return NPairLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return oracles.npair(embeddings, labels, **options)

    def permutation(self, labels):
        # Which members make the pair depends on their order, so only whole classes change places.
        return torch.sort(-labels, stable=True).indices


class TestNPairWithLengths(TestNPair):
    """Lengths count as soon as there is a pair, so a single class is no empty batch here."""

    variants = ({"l2_weight": 0.02}, {"l2_weight": 1.0})
    empty_batches = ((2, 0, 1), (0, 1), (0,))


def test_two_classes_by_hand():
    # Anchors (1, 0) and (0, 2), positives (3, 1) and (1, 1); the products a_i p_j are 3, 1 and 2, 2.
    # The sample of class 7 and the third of class 4 must not count.
    embeddings = torch.tensor([[1.0, 0.0], [50.0, 9.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0], [-8.0, 70.0]])
    labels = torch.tensor([4, 7, 2, 4, 2, 4])
    expected = (math.log(1 + math.exp(1 - 3)) + math.log(1 + math.exp(2 - 2))) / 2
    assert NPairLoss()(embeddings, labels).item() == pytest.approx(expected, rel=1e-6)
    lengths = 0.25 * 0.1 * ((1 + 4) / 2 + (10 + 2) / 2)
    assert NPairLoss(l2_weight=0.1)(embeddings, labels).item() == pytest.approx(expected + lengths, rel=1e-6)


def test_samples_outside_the_pairs_get_no_gradient():
    labels = torch.tensor([1, 0, 0, 1, 0, 2, 1])
    embeddings = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    gradient = value_and_gradient(NPairLoss(l2_weight=0.1), embeddings, labels)[1]
    assert (gradient[[4, 5, 6]] == 0).all() and (gradient[[0, 1, 2, 3]] != 0).all()


@pytest.mark.parametrize("name", ["twins_alike", "twins_different", "collapsed"])
def test_gradient_at_equal_embeddings_is_exact(name):
    # Dot products are smooth everywhere.
    embeddings, labels = TIED[name].make(0)
    gradient = value_and_gradient(NPairLoss(), embeddings, labels)[1]
    expected = oracles.numerical_gradient(lambda x: oracles.npair(x, labels), embeddings, 1e-6)
    assert_gradient_close(gradient, expected)


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_products_do_not_overflow(scale):
    # exp(x) is infinite in float32 from x = 89 on; embeddings that are not normalised get there early.
    embeddings, labels = SMOOTH["unequal"].make(0)
    embeddings = embeddings.float() * scale
    value, gradient = value_and_gradient(NPairLoss(), embeddings, labels)
    torch.testing.assert_close(value.double(), oracles.npair(embeddings, labels), rtol=1e-4, atol=0)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"loss\.l2_weight\b"):
        NPairLoss(l2_weight=-0.1)


def test_arguments_have_names():
    with pytest.raises(TypeError):
        NPairLoss(0.0)
