"""Our networks as timm's own tests look at a model."""

import pytest
import timm
import torch
from timm.models import group_parameters

from dml.models import backbones  # noqa: F401  (registers them)
from dml.models.pooling import pool

NETWORKS = {
    **{"googlenet": (64, 1024), "bninception": (64, 1024), "googlenet_bvlc": (64, 1024)},
    **{"convnet": (28, 32), "convnet4": (28, 64)},
}
names = pytest.mark.parametrize("name", NETWORKS)


def build(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def images(name, n=2):
    size = NETWORKS[name][0]
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@names
def test_classes_features_and_heads(name):
    model, x, channels = build(name, num_classes=7), images(name), NETWORKS[name][1]
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.ndim == 4 and maps.shape[:2] == (2, channels) and model.num_features == channels
        logits = model(x)
        assert logits.shape == (2, 7) and torch.equal(logits, model.forward_head(maps)) and model.num_classes == 7
        features = model.forward_head(maps, pre_logits=True)
        assert features.shape == (2, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(features), logits)
        model.reset_classifier(0)
        assert model.num_classes == 0 and torch.equal(model(x), features)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), maps)
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3)
    state, cfg = model.state_dict(), model.pretrained_cfg
    assert all(f"{cfg[key]}.weight" in state for key in ("first_conv", "classifier"))


@names
@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", ""])
def test_pooling_is_what_it_says_from_the_start_and_after_a_reset(name, kind):
    x = images(name)
    whole, reset = build(name, num_classes=0, global_pool=kind), build(name, num_classes=0)
    reset.reset_classifier(0, kind)
    with torch.no_grad():
        maps = whole.forward_features(x)
        mean, most = maps.mean((2, 3)), maps.amax((2, 3))
        expected = {"avg": mean, "max": most, "avgmax": (mean + most) / 2, "": maps}[kind]
        torch.testing.assert_close(whole(x), expected)
        torch.testing.assert_close(reset(x), expected)
    assert reset.head_hidden_size == whole.head_hidden_size == expected.shape[1]


@names
def test_a_pooling_that_it_has_not_is_refused_and_changes_nothing(name):
    model = build(name, num_classes=0)
    kind = model.global_pool
    for wrong in ("mean", "catavgmax"):
        with pytest.raises(ValueError, match=f"global_pool={wrong} is not possible: it must be one of .*avg, max"):
            model.reset_classifier(0, wrong)
        with pytest.raises(ValueError, match=f"global_pool={wrong}"):
            build(name, global_pool=wrong)
    assert model.global_pool == kind


def test_flat_is_of_the_maps_in_order():
    maps = torch.rand(2, 3, 4, 4)
    assert torch.equal(pool(maps, "flat"), maps.reshape(2, 48))


@names
def test_feature_maps_of_every_stage(name):
    model = build(name, features_only=True)
    with torch.no_grad():
        maps = model(images(name))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert len(maps) == len(model.feature_info) >= 2
    sides = [m.shape[-1] for m in maps]
    assert sides == sorted(sides, reverse=True)


@names
def test_maps_on_the_way_are_those_of_features_only(name):
    model, x = build(name, num_classes=0), images(name)
    with torch.no_grad():
        expected = build(name, features_only=True)(x)
        last, maps = model.forward_intermediates(x)
        assert len(maps) == len(expected) and all(map(torch.equal, maps, expected))
        assert torch.equal(last, model.forward_features(x))
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
        if name != "convnet":  # which cuts off the edges, too
            assert [x.shape[3] // info["reduction"] for info in model.feature_info] == [m.shape[3] for m in maps]
        chosen = model.forward_intermediates(x, indices=[0, -1], intermediates_only=True)
        assert len(chosen) == 2 and torch.equal(chosen[0], maps[0]) and torch.equal(chosen[1], maps[-1])
        early, _ = model.forward_intermediates(x, indices=[0], stop_early=True)
        assert torch.equal(early, maps[0])
        weights = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers([0]) == [0]
        assert torch.equal(model(x), maps[0]) and model.num_features == maps[0].shape[1]
        assert sum(p.numel() for p in model.parameters()) < weights


@names
def test_pieces_are_the_network_and_its_layers(name):
    model, x = build(name, num_classes=5), images(name)
    with torch.no_grad():
        maps = x
        for _, piece in model.pieces():
            maps = piece(maps)
        assert torch.equal(maps, model.forward_features(x))
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    trained = [name for name, piece in model.pieces() if list(piece.parameters())]
    assert sorted(set(layers.values())) == list(range(len(trained) + 1))  # and the classifier behind them
    for weight, layer in layers.items():
        assert weight.startswith([*trained, "fc"][layer] + "."), weight


@names
def test_maps_computed_twice_have_the_same_gradient(name):
    x, gradients = images(name, 4), []
    for twice in (False, True):
        model = build(name, num_classes=0)
        model.set_grad_checkpointing(twice)
        model(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@names
def test_every_weight_gets_a_gradient_through_the_classifier(name):
    model = build(name, num_classes=7).train()
    model(images(name, 4)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(torch.isnan(p.grad).any() for p in model.parameters())


def test_dropout_comes_before_the_classifier_alone():
    model = build("convnet", num_classes=7, drop_rate=0.9).train()
    x = images("convnet")
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.reset_classifier(0)
        assert torch.equal(model(x), model(x))
