"""SoftTriple loss, arXiv:1909.05235."""

import pytest
import torch

from dml.losses import soft_triple
from dml.losses.soft_triple import SoftTripleLoss
from tests.losses import SMOOTH, by_proxies, value_and_gradient
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestSoftTriple(LossContract):
    by_blocks = False
    variants = (
        {"centers_per_class": 3},
        {"centers_per_class": 1},
        {"centers_per_class": 2, "gamma": 1.0, "margin": 0.1, "tau": 2.0},
    )

    def build(self, options, dim):
        torch.manual_seed(100)  # no seed of a batch: the weights would be its embeddings
        return SoftTripleLoss(embedding_dim=dim, num_classes=CLASSES, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.soft_triple(loss, embeddings, labels, **options)


def test_its_weights():
    torch.manual_seed(0)
    weights = SoftTripleLoss(embedding_dim=64, num_classes=500).centers
    assert weights.shape == (500, 10, 64) and weights.dtype == torch.float32
    assert weights.std().item() == pytest.approx((5000 * 3) ** -0.5, rel=0.02)


def test_very_many_centres_are_taken_in_parts(monkeypatch):
    given = []
    x, labels = SMOOTH["unequal"].make(0)
    for most in (2**25, 30):  # 24 embeddings: two at a time, of 14 centres
        monkeypatch.setattr(soft_triple, "_COSINES", most)
        torch.manual_seed(0)
        loss = SoftTripleLoss(embedding_dim=8, num_classes=CLASSES, centers_per_class=2).double()
        value, gradient = value_and_gradient(loss, x, labels)
        given.append((value, gradient, loss.centers.grad))
    for whole, parts in zip(*given, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def test_equal_centres_have_a_finite_gradient():
    loss = SoftTripleLoss(embedding_dim=3, num_classes=2)
    with torch.no_grad():
        loss.centers.copy_(torch.ones(2, 10, 3))
    loss(torch.randn(4, 3), torch.tensor([0, 0, 1, 1])).backward()
    assert loss.centers.grad.isfinite().all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_dim", 0),
        ("num_classes", 0),
        ("centers_per_class", 0),
        ("scale", 0.0),
        ("gamma", 0.0),
        ("margin", -0.1),
        ("tau", -0.1),
    ],
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        SoftTripleLoss(**{"embedding_dim": 3, "num_classes": CLASSES, key: value})


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_batch_that_does_not_fit_is_refused(label):
    loss = SoftTripleLoss(embedding_dim=3, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        loss(torch.randn(2, 3), torch.tensor([0, label]))
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=3 is not possible: it must be the embeddings' 4"):
        loss(torch.randn(2, 4), torch.tensor([0, 1]))
