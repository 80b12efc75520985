"""Ranked list loss, arXiv:1903.03238."""

import math

import pytest
import torch

from dml.losses.ranked_list import RankedListLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestRankedList(LossContract):
    variants = (
        {},
        {"alpha": 1.4, "margin": 0.2, "t_p": 3.0, "balance": 0.2},
        {"form": "tpami", "margin": 1.0, "t_p": 1.0, "t_n": 0.0},
    )
    empty_batches = ((0,),)
    labels_that_count = (0, 0, 1, 1, 0)

    def build(self, options, dim):
        return RankedListLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.ranked_list(embeddings, labels, **options)

    def stops_gradients(self, options):
        return True

    def near(self, loss, options, embeddings, labels):
        return lambda x: by_anchors.ranked_list(x, labels, **options, held=embeddings)


# On the circle at 0, 90, 30 and 180 degrees; the first two are a class.
ANGLES = torch.tensor([0.0, 90, 30, 180], dtype=torch.float64).deg2rad()
X = 3 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
LABELS = torch.tensor([0, 0, 1, 2])


def test_one_anchor_by_hand():
    # Of the first: its positive is sqrt 2 away, and one negative within 1.2; the other is 2 away.
    near = 1.2 - 2 * math.sin(math.radians(15))
    value = RankedListLoss()(X, LABELS, anchors=1)
    assert value.item() == pytest.approx((math.sqrt(2) - 0.8) / 2 + near / 2, rel=1e-12)


def test_anchors_of_the_published_layer_count_by_their_weights():
    values, weights = [], []
    for order in ([0, 1, 2, 3], [1, 0, 2, 3]):
        values.append(RankedListLoss(alpha=1.2, t_n=2.0)(X[order], LABELS[order], anchors=1).item())
        near = 1.2 - 2 * math.sin(math.radians(15 if order[0] == 0 else 30))
        weights.append(1 + math.exp(2 * near))
    value = RankedListLoss(form="tpami", alpha=9.0, t_n=2.0)(X, LABELS, anchors=2)
    expected = (weights[0] * values[0] + weights[1] * values[1]) / sum(weights)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_weights_beyond_float32_are_right():
    value = RankedListLoss(t_n=1000.0, balance=1.0)(X.float(), LABELS, anchors=1)
    assert value.item() == pytest.approx(1.2 - 2 * math.sin(math.radians(15)), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("form", "x"), ("alpha", 0.0), ("margin", -0.1), ("t_p", -1.0), ("t_n", -1.0), ("balance", 1.1)],
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        RankedListLoss(**{key: value})
