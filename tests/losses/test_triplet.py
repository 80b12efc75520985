"""Triplet loss, equation 2 of arXiv:1909.09427, with three ways to choose the triplets."""

from functools import partial

import pytest
import torch

from dml.losses.building_blocks import pairwise
from dml.losses.triplet import TripletLoss
from tests import oracles
from tests.losses import TIED, assert_gradient_close, value_and_gradient
from tests.losses.conftest import LossContract


class TestTriplet(LossContract):
    variants = (
        {},
        {"mining": "semi_hard", "margin": 4.0},
        {"mining": "hard", "margin": 0.2},
        {"mining": "all", "margin": 2.0},
        {"mining": "all", "margin": 0.3},
    )
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return TripletLoss(**options)

    def leaves_open(self, loss, embeddings):
        # By rounded products it is open whether a negative just as far as the positive is farther.
        on_a_grid = (embeddings == embeddings.round()).all() and embeddings.abs().sum() > 0
        return pairwise._SMALL < 0 and on_a_grid and loss.mining == "semi_hard"

    def oracle(self, loss, options, embeddings, labels):
        return oracles.triplet(embeddings, labels, **options)


@pytest.mark.parametrize(
    ("mining", "terms"),
    [
        # The anchors 0 and 2 have each other at D = 2, with negatives at D = 1.5, 3, 7 and D = 1, 3.5, 5.
        # The anchors 3 and -1.5 have each other at D = 4.5, negatives at D = 1, 3, 4 and D = 1.5, 3.5, 8.5.
        # The sample at 7 has no positive. Each term is max(0, D_ap^2 - D_an^2 + 6).
        ("semi_hard", [1, 0, 10.25, 0]),
        ("hard", [7.75, 9, 25.25, 24]),
        ("all", [7.75, 1, 0, 9, 0, 0, 25.25, 17.25, 10.25, 24, 14, 0]),
    ],
)
def test_chosen_triplets_by_hand(mining, terms):
    embeddings = torch.tensor([[0.0], [2.0], [3.0], [-1.5], [7.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    value = TripletLoss(margin=6.0, mining=mining)(embeddings, labels)
    assert value.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_semi_hard_leaves_out_negatives_as_far_as_the_positive():
    # The anchor 0 has its positive and one negative at D = 1, the other negative at D = 2.
    # The anchor -1 has its positive at D = 1 and the negatives at D = 2 and 3.
    embeddings, labels = torch.tensor([[0.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 2])
    value = TripletLoss(margin=10.0)(embeddings, labels)
    assert value.item() == pytest.approx(((1 - 4 + 10) + (1 - 4 + 10)) / 2, rel=1e-6)


@pytest.mark.parametrize("name", ["twins_alike", "twins_different"])
def test_gradient_at_equal_embeddings_is_exact(name):
    # Squared distances are smooth at zero, so here central differences are right for equal embeddings too.
    embeddings, labels = TIED[name].make(0)
    gradient = value_and_gradient(TripletLoss(mining="all"), embeddings, labels)[1]
    reference = partial(oracles.triplet, labels=labels, mining="all")
    assert_gradient_close(gradient, oracles.numerical_gradient(reference, embeddings, 1e-6))


@pytest.mark.parametrize("margin", [0.0, -1.0])
def test_margins_that_are_not_positive_are_refused(margin):
    with pytest.raises(ValueError, match=r"loss\.margin\b"):
        TripletLoss(margin=margin)


def test_unknown_mining_is_refused():
    with pytest.raises(ValueError, match=r"loss\.mining\b"):
        TripletLoss(mining="semihard")


def test_arguments_have_names():
    with pytest.raises(TypeError):
        TripletLoss(1.0)
