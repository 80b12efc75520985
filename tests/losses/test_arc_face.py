"""ArcFace, arXiv:1801.07698."""

import pytest
import torch

from dml.losses.arc_face import ArcFaceLoss
from tests.losses import by_proxies
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestArcFace(LossContract):
    by_blocks = False
    variants = ({}, {"margin": 1.5, "scale": 5.0}, {"margin": 0.0})

    def build(self, options, dim):
        torch.manual_seed(100)  # no seed of a batch: the weights would be its embeddings
        return ArcFaceLoss(embedding_dim=dim, num_classes=CLASSES, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.arc_face(loss, embeddings, labels, **options)


def test_its_weights():
    torch.manual_seed(0)
    weights = ArcFaceLoss(embedding_dim=64, num_classes=500).weight
    assert weights.shape == (500, 64) and weights.dtype == torch.float32
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)


def test_at_the_weight_itself_its_gradient_is_finite():
    loss = ArcFaceLoss(embedding_dim=3, num_classes=2)
    x = torch.cat([loss.weight.detach(), -loss.weight.detach()]).requires_grad_()
    loss(x, torch.tensor([0, 1, 0, 1])).backward()
    assert x.grad.isfinite().all() and loss.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("key", "value"), [("embedding_dim", 0), ("num_classes", 0), ("margin", -0.1), ("margin", 3.2), ("scale", 0.0)]
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        ArcFaceLoss(**{"embedding_dim": 3, "num_classes": CLASSES, key: value})


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_batch_that_does_not_fit_is_refused(label):
    loss = ArcFaceLoss(embedding_dim=3, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        loss(torch.randn(2, 3), torch.tensor([0, label]))
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=3 is not possible: it must be the embeddings' 4"):
        loss(torch.randn(2, 4), torch.tensor([0, 1]))
