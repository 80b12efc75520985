"""Pooling of the embedder: GeM against a loop, the network's own kinds, and what stands behind them."""

import pytest
import torch
from torch import nn

from dml.models import pooling
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder
from dml.models.heads import make_head
from dml.models.pooling import GeM, features_by, pooled_otherwise

# Maps [B, C, h, w], the same with a norm behind the pooling, maps [B, h, w, C], tokens behind a class token, and ours.
NETWORKS = {
    **{"test_resnet": 64, "test_convnext": 64, "test_vit": 160, "convnet4": 28},
    **{"mobilenetv3_small_050": 32, "swin_tiny_patch4_window7_224": 56},
}


SMALL = {"swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}}


def build(name):
    torch.manual_seed(0)
    return create_backbone(name=name, **SMALL.get(name, {})).eval()


def images(name, n=2):
    size = NETWORKS[name]
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_gem_is_the_root_of_a_mean_of_powers_gradient_included():
    maps = (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1).requires_grad_()
    gem = GeM().double()
    with torch.no_grad():
        gem.p.fill_(2.5)
    weights = torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.5, -1.0]], dtype=torch.float64)
    pooled = gem(maps)
    (pooled * weights).sum().backward()

    def slow(values, p):
        rows = [
            [(sum(max(v, 1e-6) ** p for v in channel) / len(channel)) ** (1 / p) for channel in image]
            for image in values
        ]
        return rows, sum(
            w * v for ws, vs in zip(weights.tolist(), rows, strict=True) for w, v in zip(ws, vs, strict=True)
        )

    values, step = maps.tolist(), 1e-6
    assert min(maps.flatten().tolist()) < 0  # some are clamped
    torch.testing.assert_close(pooled, torch.tensor(slow(values, 2.5)[0], dtype=torch.float64))
    for b in range(2):
        for c in range(3):
            for i in range(5):
                changed = []
                for way in (step, -step):
                    there = [[list(channel) for channel in image] for image in values]
                    there[b][c][i] += way
                    changed.append(slow(there, 2.5)[1])
                assert maps.grad[b, c, i].item() == pytest.approx((changed[0] - changed[1]) / (2 * step), abs=1e-6)
    by_p = (slow(values, 2.5 + step)[1] - slow(values, 2.5 - step)[1]) / (2 * step)
    assert gem.p.grad.item() == pytest.approx(by_p, abs=1e-6)


def test_gem_is_the_mean_for_one_and_the_maximum_far_out():
    maps, gem = torch.rand(2, 3, 7), GeM()
    for p, expected in ((1.0, maps.mean(2)), (500.0, maps.amax(2))):
        with torch.no_grad():
            gem.p.fill_(p)
            torch.testing.assert_close(gem.double()(maps.double()), expected.double(), rtol=1e-2, atol=1e-5)


class Mean(nn.Module):
    def forward(self, places):
        return places.mean(dim=2)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_module_that_takes_the_mean_gives_what_the_networks_own_avg_gives(name):
    model, x = build(name), images(name)
    pooled_otherwise(model, "gem")
    with torch.no_grad():
        torch.testing.assert_close(features_by(Mean(), model, x), model(x), rtol=1e-4, atol=1e-5)


def test_averages_over_tokens_leave_out_the_class_token():
    model, x = build("test_vit"), images("test_vit")
    with torch.no_grad():
        tokens = model.forward_features(x)
        for kind, expected in (
            ("token", tokens[:, 0]),
            ("avg", tokens[:, 1:].mean(1)),
            ("max", tokens[:, 1:].amax(1)),
            ("gem", tokens[:, 1:].clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)),
        ):
            embedder = Embedder(backbone=model, dim=None, head="none", pool=kind).eval()
            torch.testing.assert_close(embedder.columns(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "norm_linear", "mlp", "none"])
@pytest.mark.parametrize("pool", [None, "avg", "max", "avgmax", "catavgmax", "gem"])
def test_every_pooling_with_every_head(pool, head):
    width = 192 if pool == "catavgmax" else 96
    model = Embedder(backbone=build("test_resnet"), dim=width if head == "none" else 5, pool=pool, head=head).train()
    embeddings = model(images("test_resnet", 4))
    assert embeddings.shape == (4, model.dim) and model.dim == (width if head == "none" else 5)
    embeddings.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    names = {name for name in model.state_dict() if not name.startswith("backbone.")}
    heads = {"none": set(), "mlp": {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}}
    assert names == {
        *({"mean", "std"} | heads.get(head, {"head.weight", "head.bias"})),
        *(["pooling.p"] if pool == "gem" else []),
    }


def test_a_pooling_of_the_embedder_leaves_the_weights_of_the_backbone_as_they_are():
    # timm moves a norm where it makes a network with another pooling, and then takes no weights of the former.
    before = build("test_vit").state_dict()
    for kind in ("avg", "gem"):
        model = Embedder(backbone=build("test_vit"), dim=3, pool=kind)
        after = model.backbone.state_dict()
        assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_norm_linear_is_linear_in_features_of_mean_0_and_deviation_1():
    torch.manual_seed(0)
    head, dim = make_head("norm_linear", 6, 3)
    x = torch.rand(4, 6, dtype=torch.float64) * 7
    scaled = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head.double()(x), scaled @ head.weight.T + head.bias)
    assert dim == 3


def test_without_a_head_the_dimension_is_the_number_of_features():
    model = Embedder(backbone=build("test_resnet"), dim=None, head="none").eval()
    assert model.dim == 96
    x = images("test_resnet")
    with torch.no_grad():
        assert torch.equal(model.columns(x), model.backbone(x))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("test_resnet", {"dim": 3, "head": "none"}, "embedder.dim=3 is not possible with embedder.head=none: .*dim=96"),
        ("test_resnet", {"dim": None}, "embedder.dim=null is not possible with embedder.head=linear"),
        ("test_resnet", {"dim": 3, "head": "nosuch"}, "embedder.head=nosuch is not possible"),
        ("test_resnet", {"dim": 3, "pool": "token"}, "embedder.pool=token is not possible with a ResNet"),
        ("test_resnet", {"dim": 3, "pool": ""}, "embedder.pool= is not possible .*without pooling"),
        ("test_vit", {"dim": 3, "pool": "map"}, "embedder.pool=map is not possible with a VisionTransformer"),
        ("convnet4", {"dim": 3, "pool": "nosuch"}, "embedder.pool=nosuch is not possible .*one of avg, max"),
    ],
)
def test_what_a_network_cannot_do_names_the_key(name, options, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        Embedder(backbone=build(name), **options)


def test_a_backbone_of_ones_own_that_cannot_change_its_pooling_is_told():
    with pytest.raises(
        ValueError, match=r"^embedder\.pool=gem is not possible: the backbone, a Flatten, has no reset_class"
    ):
        pooling.pooled_otherwise(nn.Flatten(), "gem")
