"""Sigmoid loss of pairs, arXiv:2303.15343."""

import math

import pytest
import torch

from dml.losses.memory import CrossBatchMemory
from dml.losses.sigmoid_pairs import SigmoidPairsLoss
from tests.losses import Batch, by_weights
from tests.losses.conftest import LossContract


class TestSigmoidPairs(LossContract):
    variants = ({}, {"scale": 3.0, "shift": 0.5})
    empty_batches = ((0,),)

    def build(self, options, dim):
        return SigmoidPairsLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_weights.sigmoid_pairs(loss, embeddings, labels, **options)


def test_its_weights():
    loss = SigmoidPairsLoss()
    assert {name: weight.shape for name, weight in loss.named_parameters()} == {"log_scale": (), "shift": ()}
    assert loss.log_scale.item() == pytest.approx(math.log(10)) and loss.shift.item() == -10


def test_all_pairs_of_a_batch_of_one_have_no_loss_and_its_weights_a_gradient():
    loss = SigmoidPairsLoss()
    value = loss(torch.ones(1, 3), torch.tensor([0]))
    value.backward()
    assert value == 0 and loss.log_scale.grad == 0 and loss.shift.grad == 0


def test_a_memory_adds_others():
    loss, (x, labels) = SigmoidPairsLoss().double(), Batch((3, 2, 2), 4).make(0)
    memory = CrossBatchMemory(loss=loss, size=20, start_step=0, embedding_dim=4).double()
    earlier = x.flip(0)
    memory(earlier, labels)
    expected = by_weights.sigmoid_pairs(loss, torch.cat([x, earlier]), torch.cat([labels, labels]), anchors=len(x))
    torch.testing.assert_close(memory(x, labels), expected, rtol=1e-10, atol=0)


def test_what_is_not_possible_is_refused():
    with pytest.raises(ValueError, match=r"loss\.scale=0"):
        SigmoidPairsLoss(scale=0.0)
