"""Levels of a network: taps, their heads, and what is searched with."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from dml.engine.micro_batch import embed_in_chunks
from dml.models.backbones import create_backbone
from dml.models.cascade import CascadeEmbedder
from dml.testing.contracts import EmbedderContract
from tests.models.test_embedder import Pixels, images


def make(**given):
    torch.manual_seed(0)
    options = {"dim": 6, "sizes": [1, 2, 3], "taps": ["features.0", "features.2"], "tap_pool": None, "tap_grid": 2}
    options |= {"channels": 4, "hidden": 5, "dropout": [0.5, 0.5, 0.5]}
    backbone = {} if "backbone" in given else {"backbone": create_backbone(name="convnet4")}
    return CascadeEmbedder(**{**options, **backbone, **given})


class TestCascade(EmbedderContract):
    dim = 6

    def build(self):
        return make()


def test_levels_are_heads_on_the_maps_of_the_taps():
    model = make(weights=[1.0, 2.0, 3.0]).eval()
    with torch.no_grad():
        columns = model(images())
        x = ((images() / 255) - model.mean) / model.std
        expected = []
        for k in range(3):
            maps = model.backbone.features[: (1, 3, None)[k]](x)
            if k < 2:
                maps = F.adaptive_avg_pool2d(maps, 2)
                maps = model.neck[k].conv(maps).relu().flatten(1)
                level = model.neck[k].fc(maps).relu()
            else:
                level = model.backbone(x)
            expected.append(model.head[k](level))
    torch.testing.assert_close(columns, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)
    joined = model.join(columns)
    lengths = [part.norm(dim=1) for part in joined.split([1, 2, 3], dim=1)]
    for length, weight in zip(lengths, (1, 2, 3), strict=True):
        torch.testing.assert_close(length, torch.full((6,), float(weight)))


def test_dropout_is_drawn_in_training_alone():
    model = make()
    assert not torch.equal(model(images()), model(images()))
    assert torch.equal(model.eval()(images()), model(images()))


def test_gradient_caching_draws_the_same_dropout_twice():
    model, gradients = make(), []
    for embed in (embed_in_chunks, lambda network, x, size: torch.cat([network(chunk) for chunk in x.split(size)])):
        torch.manual_seed(3)
        model.zero_grad()
        embed(model, images(), 4).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for caching, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(caching, plain, rtol=1e-4, atol=1e-5)


def test_a_copy_has_taps_of_its_own():
    first = make().eval()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.backbone.features[0][0].weight.mul_(-1)
        assert not torch.equal(first(images()), second(images()))
        assert not first._seen and not second._seen


def test_pooling_as_caffes_needs_maps_of_its_size():
    model = make(tap_pool=(5, 3), tap_grid=4, taps=["features.0"], sizes=[3, 3], dropout=[0.0, 0.0]).eval()
    maps = torch.arange(14.0 * 14).view(1, 1, 14, 14).expand(1, 64, 14, 14)
    with torch.no_grad():
        level = model.neck[0]
        means = F.unfold(maps[:, :1], 5, stride=3).mean(dim=1).view(1, 1, 4, 4).expand(1, 64, 4, 4)
        expected = level.fc(level.conv(means).relu().flatten(1)).relu()
        torch.testing.assert_close(level(maps), expected)
        with pytest.raises(ValueError, match=r"tap_pool=\[5, 3\] leaves 2x2 places of maps of 9x9, .*tap_pool=null"):
            level(maps[..., :9, :9])


def test_the_papers_network():
    model = CascadeEmbedder(backbone=create_backbone(name="googlenet"), dim=384)
    assert [tuple(neck.conv.weight.shape[:2]) for neck in model.neck] == [(128, 512), (128, 528)]
    assert [neck.fc.in_features for neck in model.neck] == [2048, 2048]
    assert [tuple(head.weight.shape) for head in model.head] == [(128, 1024)] * 3
    bound = math.sqrt(6 / (1024 + 128))
    assert all(head.weight.abs().max() <= bound and (head.bias == 0).all() for head in model.head)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"taps": ["features.0"]}, r"embedder\.taps=\['features\.0'\] .* 3 levels \(embedder\.sizes\) need 2"),
        ({"taps": ["layer1", "layer2"]}, r"embedder\.taps has layer1, .* _FourBlocks: it has features"),
        ({"taps": ["features", "fc"]}, r"embedder\.taps has fc, which gives nothing and no feature maps"),
        ({"dropout": [0.5]}, r"embedder\.dropout=\[0\.5\]"),
        ({"sizes": [2, 2, 3]}, r"embedder\.sizes=\[2, 2, 3\] add up to 7"),
        ({"backbone": Pixels()}, r"embedder\.taps has features\.0"),
    ],
)
def test_what_does_not_fit_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        make(**given)
