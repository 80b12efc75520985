"""Keys that are null follow the backbone, and the config says what they became."""

import json
import logging

import pytest
import torch
from omegaconf import OmegaConf

from dml.app.checks import check_config
from tests.app.conftest import composed, evaluate, train, write_images

PAPER = ("transform=paper", "backbone.pretrained=false")
DINO = ("backbone.name=vit_small_patch14_dinov2.lvd142m", "+backbone.depth=1")


def checked(*overrides):
    cfg = composed("train", *PAPER, *overrides)
    check_config(cfg)
    return cfg


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["backbone=googlenet"], (224, 256, "bilinear", None)),
        (["backbone=resnet50"], (224, 256, "bicubic", None)),
        (["backbone.name=vit_small_patch14_dinov2.lvd142m"], (518, 592, "bicubic", None)),
        ([*DINO, "transform.size=224"], (224, 256, "bicubic", 224)),
        ([*DINO, "+backbone.img_size=112"], (112, 128, "bicubic", 112)),
        (["backbone.name=test_vit", "transform.size=96"], (96, 110, "bicubic", None)),  # it takes any
        (["backbone=googlenet", "transform.size=112"], (112, 128, "bilinear", None)),
        (["backbone=googlenet", "transform.size=112", "transform.resize=256"], (112, 256, "bilinear", None)),
        (["backbone=resnet50", "transform.interpolation=lanczos"], (224, 256, "lanczos", None)),
        (["backbone={_target_: tests.app.test_follow.Own}"], (224, 256, "bilinear", None)),
        (["transform=characters", "backbone=convnet"], (28, 28, "bilinear", None)),
    ],
)
def test_images_are_those_of_the_backbone_unless_they_are_set(overrides, expected):
    cfg = checked(*overrides) if "Own" not in overrides[0] else own()
    images = cfg.transform
    assert (images.size, images.resize, images.interpolation, cfg.backbone.get("img_size")) == expected


class Own(torch.nn.Module):
    """A backbone of one's own, which says nothing of its images."""

    head_hidden_size = 3
    pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x.mean((2, 3)) * self.weight


def own():
    cfg = composed("train", *PAPER)
    cfg.backbone = {"_target_": "tests.app.test_follow.Own"}
    OmegaConf.set_struct(cfg, False)
    cfg.backbone.name, cfg.backbone.pretrained = "own", False
    del cfg.backbone["name"], cfg.backbone["pretrained"]
    check_config(cfg)
    return cfg


def test_without_a_head_the_dimension_is_filled_in_and_told(caplog):
    with caplog.at_level(logging.INFO):
        cfg = checked("backbone.name=test_resnet", "embedder.head=none", "embedder.dim=null", "embedder.pool=catavgmax")
    assert cfg.embedder.dim == 192
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "As backbone test_resnet has it: transform.size=160, transform.resize=183, transform.interpolation=bilinear, "
        "embedder.dim=192"
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["embedder.dim=null"], r"embedder\.dim=null is not possible with embedder\.head=linear"),
        (
            ["embedder.head=none", "embedder.dim=2"],
            r"embedder\.dim=2 is not possible with embedder\.head=none: the backbone gives 96 ",
        ),
        (["embedder.pool=gem", "+backbone.global_pool=max"], r"backbone\.global_pool=max has no effect"),
        (["embedder.pool=token"], r"embedder\.pool=token is not possible with a ResNet"),
        (
            ["embedder.head=two"],
            r"embedder\.head=two is not possible: it must be one of linear, norm_linear, mlp, none",
        ),
        (
            ["transform.interpolation=cubic"],
            r"transform\.interpolation=cubic is not possible: it must be one of nearest",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(overrides, said):
    with pytest.raises(ValueError, match=rf"^{said}[^\n]*$"):
        checked("backbone.name=test_resnet", *overrides)


def test_a_run_and_its_evaluation_say_the_sizes_that_were_used(tmp_path):
    tree = write_images(tmp_path / "tree", classes=8, images=4)
    data = ("data=folder", f"data.root={tree}", "data.val_fraction=0.5", "evaluator.ks=[1]", "loader.workers=0")
    small = ("batch.classes_per_batch=2", "batch.samples_per_class=2", "trainer.max_steps=2")
    network = ("backbone.name=vit_tiny_patch16_224", "+backbone.depth=1", "+backbone.embed_dim=24", "transform.size=32")
    pooled = ("embedder.head=none", "embedder.dim=null", "embedder.pool=gem")
    run = train(tmp_path / "run", *PAPER, *data, *small, *network, *pooled, "trainer.val_check_interval=2")
    row = json.loads((tmp_path / "run" / "metrics.json").read_text())["row"]
    assert (row["transform"]["size"], row["transform"]["resize"], row["transform"]["interpolation"]) == (
        *(32, 37),
        "bicubic",
    )
    assert row["network"] == {
        "backbone": {"depth": 1, "embed_dim": 24, "img_size": 32},
        "embedder": {"pool": "gem", "head": "none"},
    }
    assert row["dimension"] == 24 and row["images"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert config.transform.size == config.backbone.img_size == 32 and config.embedder.dim == 24
    again = evaluate(tmp_path / "again", tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert again.metrics == {key: value for key, value in run.metrics.items() if key.startswith("test/")}
    with pytest.raises(ValueError, match=r"fails with images of 48x48 pixels \(transform\.size; 32 would fit\)"):
        evaluate(tmp_path / "other", tmp_path / "run" / "checkpoints" / "best.ckpt", "transform.size=48")
