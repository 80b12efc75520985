"""Backbones by name, and GoogLeNet against torchvision's own."""

import urllib.error

import pytest
import timm
import torch
import torchvision
from torch import nn

from dml.models.backbones import create_backbone

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(scope="module")
def reference():
    """torchvision's GoogLeNet as its pretrained weights are used, with weights and statistics of our own."""
    torch.manual_seed(0)
    model = torchvision.models.GoogLeNet(transform_input=True, aux_logits=True, init_weights=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2), nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    """The file that torchvision publishes: with auxiliary heads and a classifier."""
    path = tmp_path_factory.mktemp("weights") / "googlenet.pth"
    torch.save(reference.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def googlenet(weights):
    return create_backbone(name="googlenet", checkpoint_path=str(weights)).eval()


def test_googlenet_gives_1024_pooled_features(googlenet):
    assert googlenet.head_hidden_size == googlenet.num_features == 1024
    assert googlenet.num_classes == 0
    with torch.no_grad():
        maps = googlenet.forward_features(torch.rand(1, 3, 224, 224))
        features = googlenet(torch.rand(2, 3, 64, 64))
    assert maps.shape == (1, 1024, 7, 7)
    assert features.shape == (2, 1024)


def test_googlenet_normalises_to_minus_one_to_one(googlenet):
    assert tuple(googlenet.pretrained_cfg["mean"]) == tuple(googlenet.pretrained_cfg["std"]) == (0.5, 0.5, 0.5)


def test_googlenet_has_neither_auxiliary_heads_nor_a_classifier(googlenet, reference):
    names = [name for name, _ in googlenet.named_parameters()]
    assert not [name for name in names if name.startswith(("aux", "fc"))]
    expected = [name for name, _ in reference.named_parameters() if not name.startswith(("aux", "fc"))]
    assert names == expected


def test_googlenet_is_torchvisions(googlenet, reference):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = []
    handle = reference.avgpool.register_forward_hook(lambda module, args, output: maps.extend((args[0], output)))
    with torch.no_grad():
        reference((images - IMAGENET_MEAN) / IMAGENET_STD)
        features, feature_maps = googlenet((images - 0.5) / 0.5), googlenet.forward_features((images - 0.5) / 0.5)
    handle.remove()
    assert maps[1].std() > 1e-3  # nothing has died on the way
    torch.testing.assert_close(feature_maps, maps[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(features, maps[1].flatten(1), rtol=1e-3, atol=1e-4)


def test_googlenet_with_its_classifier_is_torchvisions(weights, reference):
    model = timm.create_model(
        "googlenet", pretrained=True, pretrained_cfg_overlay={"file": str(weights)}
    ).eval()  # as timm's own users would
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference((images - IMAGENET_MEAN) / IMAGENET_STD)
        torch.testing.assert_close(model((images - 0.5) / 0.5), expected, rtol=1e-3, atol=1e-4)
    assert model.get_classifier() is model.fc
    model.reset_classifier(7)
    assert model(images).shape == (1, 7)


def test_googlenet_can_leave_the_maps_unpooled(googlenet):
    model = create_backbone(name="googlenet", global_pool="").eval()
    model.load_state_dict(googlenet.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images).mean(dim=(2, 3)), googlenet(images))


@pytest.mark.parametrize(("key", "value"), [("num_classes", 10), ("num_classes", 0), ("in_chans", 1)])
@pytest.mark.parametrize("name", ["googlenet", "convnet", "resnet10t"])
def test_options_that_no_backbone_has_are_refused(name, key, value):
    with pytest.raises(ValueError, match=rf"^backbone\.{key}={value} "):
        create_backbone(name=name, **{key: value})


@pytest.mark.parametrize("options", [{"in_chans": 1}, {"global_pool": "mean"}])
def test_googlenet_refuses_what_it_cannot_do(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create_backbone(name="googlenet", **options)


@pytest.mark.parametrize("name", ["googlenet", "googlenet.tf_in1k", "convnet", "convnet4"])
def test_names_of_this_project_are_timms_too(name):
    assert timm.is_model(name.partition(".")[0])
    model = create_backbone(name=name)
    with torch.no_grad():
        assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, model.head_hidden_size)


def test_timms_own_models_give_pooled_features():
    model = create_backbone(name="resnet10t")
    with torch.no_grad():
        assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", ["convnet", "resnet10t"])
def test_checkpoint_path_loads_the_weights(name, tmp_path):
    torch.manual_seed(0)
    original = timm.create_model(name).eval()
    torch.save(original.state_dict(), tmp_path / "w.pth")
    model = create_backbone(name=name, checkpoint_path=str(tmp_path / "w.pth")).eval()
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32)
        features = original.forward_features(images)
        assert torch.equal(model.forward_features(images), features)
        assert model(images).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize(
    "name", ["gogglenet", "", "no such model", "hf_hub:nobody/nothing", "googlenet.no_such_weights"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=r"backbone\.name\b"):
        create_backbone(name=name)


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(ValueError, match=r"backbone\.name=resnet5\b.*resnet50"):
        create_backbone(name="resnet5")


def test_missing_weights_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"backbone\.checkpoint_path={tmp_path / 'none.pth'} does not exist"):
        create_backbone(name="googlenet", checkpoint_path=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("content", ["another network", "part of the network"])
@pytest.mark.parametrize("name", ["googlenet", "convnet4"])
def test_unfitting_weights_file_is_refused(name, content, tmp_path):
    path = tmp_path / "wrong.pth"
    state = timm.create_model("convnet" if content == "another network" else name).state_dict()
    if content == "part of the network":
        state.pop(next(key for key in state if key.endswith("weight")))
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"backbone\.checkpoint_path={path} .*\b{name}\b"):
        create_backbone(name=name, checkpoint_path=str(path))


def test_failed_download_names_the_file_to_fetch(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where an earlier download would be found
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    url = "https://download.pytorch.org/models/googlenet-1378be20.pth"
    with pytest.raises(ValueError, match=r"no network here") as error:
        create_backbone(name="googlenet", pretrained=True)
    assert url in str(error.value) and "backbone.checkpoint_path=" in str(error.value)


def test_failed_download_from_the_hub_names_the_file_to_fetch(monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(ValueError, match=r"model\.safetensors of https://huggingface\.co/timm/resnet50\.") as error:
        create_backbone(name="resnet50", pretrained=True)
    assert "backbone.checkpoint_path=" in str(error.value) and "no network here" in str(error.value)


def test_errors_that_are_not_the_networks_are_left_alone(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(RuntimeError, match="something else"):
        create_backbone(name="resnet50", pretrained=True)
