"""Circle loss, arXiv:2002.10857."""

import math

import pytest
import torch

from dml.losses.circle import CircleLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestCircle(LossContract):
    variants = ({}, {"margin": 0.25, "gamma": 256.0}, {"margin": -0.1, "gamma": 2.0})
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return CircleLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.circle(embeddings, labels, **options)

    def stops_gradients(self, options):
        return True

    def near(self, loss, options, embeddings, labels):
        return lambda x: by_anchors.circle(x, labels, **options, held=embeddings)


def test_one_anchor_by_hand():
    # S is 0.6 in the pair, 0.8 and 0 to the only negative, which is no anchor.
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]], dtype=torch.float64)
    g, m = 80, 0.4
    pull = -g * (1 + m - 0.6) * (0.6 - 1 + m)
    terms = [pull + g * max(0, s + m) * (s - m) for s in (0.0, 0.8)]
    value = CircleLoss()(x, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx(sum(math.log1p(math.exp(each)) for each in terms) / 2, rel=1e-12)


@pytest.mark.parametrize(("key", "value"), [("gamma", 0.0), ("gamma", -1.0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        CircleLoss(**{key: value})
