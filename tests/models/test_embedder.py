"""Backbone and linear head."""

import copy
import types

import pytest
import torch
from torch import nn

from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder


class Pixels(nn.Module):
    """A backbone that hands its input through: features are the normalised pixels."""

    pretrained_cfg = types.MappingProxyType({"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)})
    head_hidden_size = 12

    def __init__(self, cfg=None):
        super().__init__()
        self.pretrained_cfg = dict(self.pretrained_cfg) if cfg is None else cfg

    def forward(self, x):
        return x.flatten(1)


def make(name="convnet4", **options):
    torch.manual_seed(0)
    return Embedder(backbone=create_backbone(name=name), dim=5, **options)


def images(n=6, dtype=torch.uint8, seed=0):
    x = torch.randint(0, 256, (n, 3, 28, 28), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return x if dtype == torch.uint8 else x.to(dtype) / 255


def test_uint8_and_float_images_give_the_same():
    model = make().eval()
    with torch.no_grad():
        assert torch.equal(model(images()), model(images(dtype=torch.float32)))


def test_embeddings_are_a_linear_layer_of_normalised_pixels():
    model = Embedder(backbone=Pixels(), dim=4)
    x = torch.rand(3, 3, 2, 2)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.25, 2.0]).view(3, 1, 1)
    expected = ((x - mean) / std).flatten(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), expected)
    assert (expected < 0).any()  # no activation behind it
    assert model.head.weight.shape == (4, 12)


def test_timms_own_configuration_class_will_do():
    class Cfg:
        def to_dict(self):
            return dict(Pixels.pretrained_cfg)

    model = Embedder(backbone=Pixels(Cfg()), dim=4)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_mean_and_std_are_the_backbones():
    model = Embedder(backbone=create_backbone(name="resnet10t"), dim=3)
    cfg = model.backbone.pretrained_cfg
    assert cfg["mean"] != (0.5, 0.5, 0.5)
    assert model.mean.flatten().tolist() == pytest.approx(list(cfg["mean"]))
    assert model.std.flatten().tolist() == pytest.approx(list(cfg["std"]))


def test_normalize_gives_unit_norms_and_the_same_directions():
    plain, unit = make().eval(), make(normalize=True).eval()
    with torch.no_grad():
        raw, normalised = plain(images()), unit(images())
    assert not torch.allclose(raw.norm(dim=1), torch.ones(6), atol=1e-2)
    torch.testing.assert_close(normalised.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(normalised * raw.norm(dim=1, keepdim=True), raw)


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def norm_state(model):
    return copy.deepcopy([norm.state_dict() for norm in norms(model)])


def training_step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    model(images()).square().sum().backward()
    optimizer.step()


def same(states, others):
    return all(torch.equal(a[key], b[key]) for a, b in zip(states, others, strict=True) for key in a)


@pytest.mark.parametrize("switch", ["new", "train", "eval and train"])
@pytest.mark.parametrize("name", ["convnet4", "resnet10t"])
def test_freeze_bn_keeps_statistics_and_affine_weights_through_a_training_step(name, switch):
    # A trainer may leave the mode of a new network as it is (Lightning does since 2.2).
    model = make(name, freeze_bn=True)
    if switch == "eval and train":
        model.eval()
    if switch != "new":
        assert model.train() is model
    before, head, first = norm_state(model), model.head.weight.clone(), next(model.backbone.parameters()).clone()
    assert len(before) >= 4
    assert model.training and model.head.training
    training_step(model)
    assert same(norm_state(model), before)
    assert not torch.equal(model.head.weight, head)
    assert not torch.equal(next(model.backbone.parameters()), first)
    assert not any(norm.training for norm in norms(model))
    assert not any(p.requires_grad for norm in norms(model) for p in norm.parameters())


def test_frozen_norms_make_training_and_test_agree():
    model = make(freeze_bn=True).train()
    with torch.no_grad():
        in_training = model(images())
        torch.testing.assert_close(model.eval()(images()), in_training)
        torch.testing.assert_close(model.train()(images()), in_training)


def test_without_freeze_bn_all_of_it_trains():
    model = make().train()
    before = norm_state(model)
    training_step(model)
    after = norm_state(model)
    for old, new in zip(before, after, strict=True):
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert not torch.equal(old[key], new[key]), key
    assert all(norm.training for norm in norms(model))
    assert not any(norm.training for norm in norms(model.eval()))


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_state_dict_round_trip(freeze_bn, tmp_path):
    model = make(freeze_bn=freeze_bn).train()
    training_step(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(1)
    other = Embedder(backbone=create_backbone(name="convnet4"), dim=5, freeze_bn=freeze_bn)
    with torch.no_grad():
        assert not torch.equal(other.eval()(images()), model.eval()(images()))
        other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        assert torch.equal(other(images()), model(images()))


def test_double_precision():
    model = make().double().eval()
    with torch.no_grad():
        embeddings = model(images())
        assert embeddings.dtype == torch.float64
        torch.testing.assert_close(embeddings, make().eval()(images()).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [0, -1])
def test_dimensions_that_are_not_positive_are_refused(dim):
    with pytest.raises(ValueError, match=rf"embedder\.dim={dim}\b"):
        Embedder(backbone=Pixels(), dim=dim)


def test_images_and_weights_are_channels_last(monkeypatch):
    model, seen = make().eval(), []
    original = nn.functional.conv2d

    def conv2d(x, weight, *rest):
        seen.append([tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, weight)])
        return original(x, weight, *rest)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, w, b: conv2d(x, w, b, self.stride, self.padding))
    with torch.no_grad():
        model(images())
    assert seen == [[True, True]] * 4
    model.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    assert model.backbone.features[1][0].weight.is_contiguous(memory_format=torch.channels_last)
