"""Supervised contrastive loss, arXiv:2004.11362."""

import math

import pytest
import torch

from dml.losses.sup_con import SupConLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestSupCon(LossContract):
    variants = ({}, {"temperature": 0.01}, {"temperature": 2.0})
    empty_batches = ((2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        return SupConLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.sup_con(embeddings, labels, **options)


def test_three_samples_by_hand():
    # S is 0.6 in the pair, 0 and 0.8 to the third sample, which has no positive.
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]], dtype=torch.float64)
    terms = [math.log(math.exp(6) + math.exp(other)) - 6 for other in (0, 8)]
    assert SupConLoss()(x, torch.tensor([0, 0, 1])).item() == pytest.approx(sum(terms) / 2, rel=1e-12)


def test_one_class_is_spread():
    # Every other sample is a positive: the loss is the logarithm of their number where all are alike.
    value = SupConLoss()(torch.ones(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))
    assert value.item() == pytest.approx(math.log(4), rel=1e-12)


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("temperature", -1.0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        SupConLoss(**{key: value})
