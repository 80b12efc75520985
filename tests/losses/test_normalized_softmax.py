"""Normalised softmax, arXiv:1811.12649."""

import pytest
import torch

from dml.losses.normalized_softmax import NormalizedSoftmaxLoss
from tests.losses import by_proxies
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestNormalizedSoftmax(LossContract):
    by_blocks = False
    variants = ({}, {"temperature": 1.0})

    def build(self, options, dim):
        torch.manual_seed(100)  # no seed of a batch: the weights would be its embeddings
        return NormalizedSoftmaxLoss(embedding_dim=dim, num_classes=CLASSES, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.normalized_softmax(loss, embeddings, labels, **options)


def test_its_weights():
    torch.manual_seed(0)
    weights = NormalizedSoftmaxLoss(embedding_dim=64, num_classes=500).weight
    assert weights.shape == (500, 64) and weights.dtype == torch.float32
    assert weights.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)


@pytest.mark.parametrize(("key", "value"), [("embedding_dim", 0), ("num_classes", 0), ("temperature", 0.0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        NormalizedSoftmaxLoss(**{"embedding_dim": 3, "num_classes": CLASSES, key: value})


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_batch_that_does_not_fit_is_refused(label):
    loss = NormalizedSoftmaxLoss(embedding_dim=3, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        loss(torch.randn(2, 3), torch.tensor([0, label]))
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=3 is not possible: it must be the embeddings' 4"):
        loss(torch.randn(2, 4), torch.tensor([0, 1]))
