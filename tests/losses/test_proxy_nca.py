"""Proxy-NCA, arXiv:1703.07464, and Proxy-NCA++, arXiv:2004.01113."""

import pytest
import torch

from dml.losses.proxy_nca import ProxyNCALoss
from tests.losses import by_proxies
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestProxyNCA(LossContract):
    by_blocks = False
    variants = ({}, {"scale": 9.0, "include_positive": True}, {"scale": 9.0})

    def build(self, options, dim):
        torch.manual_seed(100)  # no seed of a batch: the weights would be its embeddings
        return ProxyNCALoss(embedding_dim=dim, num_classes=CLASSES, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.proxy_nca(loss, embeddings, labels, **options)


def test_its_weights():
    torch.manual_seed(0)
    weights = ProxyNCALoss(embedding_dim=64, num_classes=500).proxies
    assert weights.shape == (500, 64) and weights.dtype == torch.float32
    assert weights.std().item() == pytest.approx(1 / 8, rel=0.02)


def test_one_class_is_possible_where_it_is_in_the_sum():
    loss = ProxyNCALoss(embedding_dim=3, num_classes=1, include_positive=True)
    assert loss(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)) == 0


def test_the_loss_can_be_negative():
    loss = ProxyNCALoss(embedding_dim=2, num_classes=2)
    with torch.no_grad():
        loss.proxies.copy_(torch.tensor([[3.0, 0.0], [-0.5, 0.0]]))
    value = loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(-4, rel=1e-6)  # D^2 is 0 to the own proxy and 4 to the other


@pytest.mark.parametrize(
    ("key", "value"), [("embedding_dim", 0), ("num_classes", 0), ("num_classes", 1), ("scale", 0.0)]
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        ProxyNCALoss(**{"embedding_dim": 3, "num_classes": CLASSES, key: value})


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_batch_that_does_not_fit_is_refused(label):
    loss = ProxyNCALoss(embedding_dim=3, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        loss(torch.randn(2, 3), torch.tensor([0, label]))
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=3 is not possible: it must be the embeddings' 4"):
        loss(torch.randn(2, 4), torch.tensor([0, 1]))
