"""Angular loss, arXiv:1708.01682."""

import math

import pytest
import torch

from dml.losses.angular import AngularLoss
from tests.losses import Batch, by_anchors
from tests.losses.conftest import LossContract


class TestAngular(LossContract):
    variants = ({}, {"alpha": 36.0}, {"alpha": 65.0})
    empty_batches = ((0, 0, 0), (2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        return AngularLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.angular(embeddings, labels, **options)


def test_three_members_by_hand():
    # Of (1, 0), (0, 2) and the negative (-3, 0), t = 1: f = 4 (0 - 1) - 4 * 0.
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    value = AngularLoss()(x, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx(math.log1p(math.exp(-4)), rel=1e-5)


def test_the_largest_alpha_stands_negatives_far_apart():
    # Each of the pair has its own nearest negative, where the other one is farthest.
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1e-3], [-1.0, 1e-3]])
    labels = torch.tensor([0, 0, 1, 2])
    value = AngularLoss(alpha=65.0)(x, labels)
    assert value.item() == pytest.approx(by_anchors.angular(x, labels, 65.0).item(), rel=1e-5)


@pytest.mark.parametrize("anchors", [1, 4, 9])
def test_of_some_anchors(anchors):
    x, labels = Batch((3, 4, 1, 2), 4).make(0)
    value = AngularLoss()(x, labels, anchors=anchors)
    torch.testing.assert_close(value, by_anchors.angular(x, labels, anchors=anchors), rtol=1e-10, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 66.0, 90.0])
def test_what_is_not_possible_is_refused(alpha):
    with pytest.raises(ValueError, match=r"loss\.alpha=.* must be greater than 0 and at most 65 degrees"):
        AngularLoss(alpha=alpha)
