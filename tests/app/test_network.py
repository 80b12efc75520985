"""Two images through the whole network before data is touched: what does not go together is one line."""

import hashlib
import json
import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from dml.app import network
from dml.app.checks import check_config
from dml.app.follow import follow_backbone
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder
from tests.app.conftest import composed, evaluate, train

FLAT = {"_target_": "torch.nn.Flatten"}
COLOR = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
TESTED = ("backbone=googlenet", "backbone.pretrained=false")


PLACES: list[str] = []  # where the images were that Reads has seen


class Reads(nn.Module):
    """Looks at a value, which the meta device does not have."""

    head_hidden_size = 4

    def __init__(self, wide: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, wide))

    def forward(self, images):
        PLACES.append(images.device.type)
        return images.mean(dim=(2, 3)) @ self.weight * (1 if images.sum().item() > 0 else 2)


class Breaks(nn.Module):
    def forward(self, images):
        return images.nosuch


class Frozen(Reads):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Own(nn.Module):
    """An embedder of one's own."""

    def __init__(self, *, backbone, dim: int, freeze_bn: bool = False, normalize: bool = False, wide: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, dim + wide)

    def forward(self, images):
        return self.layer(images.float().mean(dim=(2, 3)))


class NeverLearns(Own):
    def __init__(self, *, backbone, dim: int, freeze_bn: bool = False, normalize: bool = False) -> None:
        super().__init__(backbone=backbone, dim=dim)
        self.requires_grad_(False)


HERE = "tests.app.test_network"


def check(*overrides, backbone=None, **embedder):
    cfg = composed("train", *overrides)
    if backbone is not None:
        cfg.backbone = backbone
    cfg.embedder = {**cfg.embedder, **embedder}
    check_config(cfg)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((*TESTED, "+backbone.num_classes=10"), r"backbone\.num_classes=10 cannot be set: "),
        ((*TESTED, "+backbone.in_chans=1"), r"backbone\.in_chans=1 is not possible: "),
        ((*TESTED, "backbone.name=test_resnet", "+backbone.global_pool=''"),
         r"backbone: it must give features \[B, C\], and gives .* \[2, \d+, 1, 1\] .*; remove backbone\.global_pool"),
        ((*TESTED, "backbone.name=test_resnet", "+backbone.features_only=true"), "backbone: .* gives a list"),
        ((*TESTED, "backbone.name=test_resnet", "+backbone.nosuch=1"), r"backbone: .*backbone\.nosuch=1"),
        ((*TESTED, "backbone.name=test_vit", "transform.size=97"),
         r"transform\.size=97 does not fit the backbone's patches of 16 pixels; 96 or 112 would fit"),
        ((*TESTED, "backbone.name=vit_small_patch14_dinov2", "+backbone.depth=1", "transform.size=225"),
         r"transform\.size=225 does not fit the backbone's patches of 14 pixels; 224 or 238 would fit"),
        ((*TESTED, "backbone.name=vit_small_patch14_dinov2", "+backbone.img_size=518", "transform.size=224"),
         r"backbone: it fails with images of 224x224 pixels \(transform\.size; 518 would fit\): AssertionError"),
        (("transform.size=8",), r"backbone: it fails with images of 8x8 pixels \(transform\.size; 32 would fit\)"),
    ],
)  # fmt: skip
def test_what_no_network_can_do_is_one_line(overrides, said):
    with pytest.raises(ValueError, match=rf"^{said}[^\n]*$"):
        check(*overrides)


@pytest.mark.parametrize(
    ("backbone", "embedder", "said"),
    [
        (FLAT, {}, r"embedder\.features=2352 is needed: the backbone, a Flatten, has no whole number head_hidden_size"),
        (
            FLAT,
            {"features": 2352},
            r"embedder\.mean=\[R,G,B\] is needed: the backbone, a Flatten, has no pretrained_cfg",
        ),
        (FLAT, {"features": 235, **COLOR}, r"embedder\.features=235 is not the number of its features, which is 2352"),
        (
            {"_target_": "torch.nn.Identity"},
            {},
            r"backbone: it must give features .*\[2, 3, 28",
        ),
        ({"_target_": "dml.data.digits.load"}, {}, r"backbone: it must be a torch\.nn\.Module, not a Source"),
        ({"_target_": f"{HERE}.Reads", "wide": 5}, COLOR, r"backbone: its head_hidden_size=4 is not .* which is 5"),
        (
            {"_target_": f"{HERE}.Breaks"},
            COLOR,
            r"backbone: it fails .*nosuch.*test_network\.py, line",
        ),
        (
            None,
            {"_target_": f"{HERE}.Own", "wide": 1, "dim": 2},
            r"embedder: it must give .* embedder\.dim=2",
        ),
        (None, {"_target_": f"{HERE}.NeverLearns"}, "embedder: none of its weights"),
    ],
)
def test_a_part_of_ones_own_hears_what_it_needs(backbone, embedder, said):
    if "_target_" in embedder:
        cfg = composed("train")
        cfg.embedder = {"dim": 2, "freeze_bn": False, "normalize": False, **embedder}
        with pytest.raises(ValueError, match=rf"^{said}[^\n]*$"):
            check_config(cfg)
        return
    with pytest.raises(ValueError, match=rf"^{said}[^\n]*$"):
        check(backbone=backbone, **embedder)


def test_parts_of_ones_own_that_have_all_pass_for_real_where_the_meta_device_cannot():
    PLACES.clear()
    check(backbone={"_target_": f"{HERE}.Reads"}, **COLOR)
    assert PLACES == ["meta", "cpu", "cpu"]  # backbone, then whole
    check(backbone=FLAT, features=2352, **COLOR)


@pytest.mark.parametrize("model", ["googlenet", "convnet"])
def test_the_meta_device_is_enough_for_networks_of_ours(model, monkeypatch):
    seen, original = [], nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: seen.append(x.device.type) or original(self, x))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    cfg = composed("train", f"model={model}")
    follow_backbone(cfg, OmegaConf.to_container(cfg, resolve=True))
    config = OmegaConf.to_container(cfg, resolve=True)
    assert list(network.network_problems(config)) == []  # with pretrained=true of GoogLeNet: nothing is downloaded
    assert seen and set(seen) == {"meta"}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and np.random.get_state()[1].tolist() == states[2]


def test_ten_crops_go_through_too():
    check("transform.ten_crop=true")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A short run's best.ckpt."""
    folder = tmp_path_factory.mktemp("first")
    train(folder, "embedder.dim=3")
    return folder / "checkpoints" / "best.ckpt"


def loaded(checkpoint):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("embedder."): value for name, value in state.items() if name.startswith("embedder.")}


def test_a_run_begins_with_the_weights_of_another(checkpoint, tmp_path):
    # No step moves weights at this learning rate: what the new run holds is what it began with.
    still = ("optimizer=sgd", "scheduler=none", "optimizer.lr=1e-30", "optimizer.weight_decay=0")
    run = train(
        tmp_path, f"embedder.checkpoint_path='{checkpoint}'", "embedder.dim=3", "seed=5", *still, "optimizer=sgd"
    )
    expected, state = loaded(checkpoint), run.checkpoint()["state_dict"]
    assert all(torch.equal(state[f"embedder.{name}"], value) for name, value in expected.items())
    # The row says by content what a run began with, also where the file is gone by then.
    weights = f"{checkpoint} (sha256 {hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]})"
    assert json.loads((tmp_path / "metrics.json").read_text())["row"]["weights"] == weights
    again = evaluate(tmp_path / "again", tmp_path / "checkpoints" / "best.ckpt")
    assert json.loads((again.folder / "evaluation.json").read_text())["row"]["weights"] == weights
    with pytest.raises(ValueError, match=r"^backbone: it fails with images of 8x8 pixels \(transform\.size; 32 would"):
        evaluate(tmp_path / "small", tmp_path / "checkpoints" / "best.ckpt", "transform.size=8")


def test_a_backbone_begins_with_that_of_another_run(checkpoint, caplog):
    with caplog.at_level("INFO"):
        backbone = create_backbone(name="convnet", checkpoint_path=str(checkpoint))
    expected = loaded(checkpoint)
    assert all(torch.equal(value, expected[f"backbone.{name}"]) for name, value in backbone.state_dict().items())
    assert "prefix embedder.backbone. taken off; left out: embedder." in caplog.text


def test_a_checkpoint_of_another_embedder_is_refused_before_data(checkpoint, tmp_path):
    for overrides, said in (
        (("embedder.dim=4",), r"embedder\.dim=4: wrong shape: head\.weight has shape \[3, 512\] where .*\[4, 512\]"),
        (("embedder.dim=3", "model=convnet4"), r"missing: "),
        (("embedder.dim=3", f"backbone.checkpoint_path='{checkpoint}'"), r"leave out backbone\.checkpoint_path"),
    ):
        with pytest.raises(ValueError, match=rf"^embedder\.checkpoint_path[^\n]*{said}[^\n]*$"):
            check(f"embedder.checkpoint_path='{checkpoint}'", *overrides)
    with pytest.raises(ValueError, match=rf"^embedder\.checkpoint_path={tmp_path} is a folder"):
        check(f"embedder.checkpoint_path='{tmp_path}'")


def test_a_mean_that_is_not_the_checkpoints_is_refused(checkpoint):
    given = {"dim": 3, "checkpoint_path": str(checkpoint), "mean": (0.1, 0.1, 0.1)}
    with pytest.raises(ValueError, match=r"embedder\.mean is not that of .*\[0\.3, 0\.3, 0\.3\]"):
        Embedder(backbone=create_backbone(name="convnet"), **given)
    given["mean"] = (0.3, 0.3, 0.3)
    assert torch.equal(
        Embedder(backbone=create_backbone(name="convnet"), **given).head.weight, loaded(checkpoint)["head.weight"]
    )
