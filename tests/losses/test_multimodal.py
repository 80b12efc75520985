"""Multimodal loss, arXiv:2308.10486."""

import pytest
import torch

from dml.losses.multimodal import MultimodalLoss
from tests.losses import Batch, by_proxies, value_and_gradient
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestMultimodal(LossContract):
    by_blocks = False
    variants = ({"proxies_per_class": 3}, {"proxies_per_class": 1, "gamma": 1.0})

    def build(self, options, dim):
        torch.manual_seed(100)  # no seed of a batch: the weights would be its embeddings
        return MultimodalLoss(embedding_dim=dim, num_classes=CLASSES, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.multimodal(loss, embeddings, labels, **options)


@pytest.mark.parametrize("given", [{"num_modalities": 2}, {"num_modalities": 2, "heads": False}])
def test_two_modalities(given):
    x, labels = Batch((3, 2, 2), 6).make(0)
    x = x.abs()
    loss = MultimodalLoss(embedding_dim=6, num_classes=3, proxies_per_class=2, **given).double()
    value, gradient = value_and_gradient(loss, x, labels)
    torch.testing.assert_close(
        value, by_proxies.multimodal(loss, x, labels, proxies_per_class=2, **given), rtol=1e-10, atol=0
    )
    torch.autograd.gradcheck(lambda point: loss(point, labels), x.requires_grad_())
    assert gradient.abs().sum() > 0 and loss.logits(x).shape == (7, 3)


def test_its_weights():
    torch.manual_seed(0)
    loss = MultimodalLoss(embedding_dim=12, num_classes=30, num_modalities=3)
    assert {name: tuple(weight.shape) for name, weight in loss.named_parameters()} == {
        "proxies": (600, 90),
        **{f"heads.{i}.weight": (30, 4) for i in range(3)},
        **{f"heads.{i}.bias": (30,) for i in range(3)},
    }
    assert loss.proxies.std().item() == pytest.approx((600 * 3) ** -0.5, rel=0.02)
    assert [*dict(MultimodalLoss(embedding_dim=4, num_classes=4, heads=False).named_parameters())] == ["proxies"]


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("num_modalities", {"num_modalities": 0}),
        ("proxies_per_class", {"proxies_per_class": 0}),
        ("gamma", {"gamma": 0.0}),
        ("embedding_dim", {"embedding_dim": 511, "num_modalities": 2}),
        ("proxies_per_class", {"num_classes": 11318}),
        ("proxies_per_class", {"num_classes": 100_000}),
    ],
)
def test_what_is_not_possible_is_refused(key, given):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        MultimodalLoss(**{"embedding_dim": 4, "num_classes": CLASSES, **given})


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        MultimodalLoss(embedding_dim=3, num_classes=CLASSES)(torch.randn(2, 3), torch.tensor([0, -1]))


def test_embeddings_that_are_no_probabilities_are_refused():
    loss = MultimodalLoss(embedding_dim=4, num_classes=CLASSES, heads=False)
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=4 is not .* = 7, as loss\.heads=false"):
        loss(torch.rand(2, 4), torch.tensor([0, 1]))
