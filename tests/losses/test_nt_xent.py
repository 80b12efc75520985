"""NT-Xent with labels, arXiv:2002.05709, and SINCERE, arXiv:2309.14277."""

import math

import pytest
import torch

from dml.losses.nt_xent import NTXentLoss
from tests.losses import Batch, by_anchors
from tests.losses.conftest import LossContract


class TestNTXent(LossContract):
    variants = ({}, {"average": "anchor"}, {"temperature": 0.01}, {"temperature": 2.0, "average": "anchor"})
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return NTXentLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.nt_xent(embeddings, labels, **options)


def test_three_samples_by_hand():
    # S is 0.6 in the pair, 0 and 0.8 to the third sample, which has no positive.
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]], dtype=torch.float64)
    terms = [math.log(math.exp(6) + math.exp(other)) - 6 for other in (0, 8)]
    assert NTXentLoss()(x, torch.tensor([0, 0, 1])).item() == pytest.approx(sum(terms) / 2, rel=1e-12)


def test_the_two_means_agree_where_classes_are_equally_large():
    x, labels = Batch((3, 3, 3), 4).make(0)
    values = [NTXentLoss(average=average)(x, labels) for average in ("pair", "anchor")]
    torch.testing.assert_close(*values, rtol=1e-13, atol=0)


def test_a_pair_far_beyond_its_negatives_keeps_its_loss():
    # One opposite pair at T = 0.01: the share of the pair, e^-200, is nothing in float32.
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    value = NTXentLoss(temperature=0.01)(x, torch.tensor([0, 0, 1]))
    value.backward()
    assert value.item() == pytest.approx((200 + math.log(2)) / 2, rel=1e-5)


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("temperature", -1.0), ("average", "class")])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        NTXentLoss(**{key: value})
