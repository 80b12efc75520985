"""Another class by `_target_`: keys of the YAML that it does not take are left out, and told; the user's own stay."""

import json
import pydoc

import pytest

from dml.app.another_target import leave_out
from dml.app.checks import check_config
from tests.app.conftest import composed, train


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        ("optimizer._target_=torch.optim.RAdam", []),  # fused is null
        (
            "optimizer=sgd optimizer._target_=torch.optim.NAdam +optimizer.betas=[0.8,0.99]",
            ["optimizer.momentum=0.9 is left out: torch.optim.NAdam takes none"],
        ),
        ("optimizer._target_=torch.optim.Adagrad", []),
        ("optimizer._target_=timm.optim.Lion", []),
        (
            "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR +scheduler.max_lr=0.01 "
            "+scheduler.total_steps=${trainer.max_steps}",
            [
                "scheduler.steps=3 is left out: torch.optim.lr_scheduler.OneCycleLR takes none",
                "scheduler.warmup=0.1 is left out: torch.optim.lr_scheduler.OneCycleLR takes none",
            ],
        ),
    ],
)
def test_it_trains_and_what_is_left_out_is_told(tmp_path, caplog, overrides, left_out):
    run = train(tmp_path, *overrides.split())
    assert [line for line in caplog.messages if "left out" in line] == left_out
    row = json.loads((run.folder / "metrics.json").read_text())["row"]
    group, target = overrides.split("._target_=")[0].split()[-1], overrides.split("_target_=")[1].split()[0]
    assert row[group]["_target_"] == target
    assert not row[group].keys() & {"fused" if "RAdam" in target else "momentum", "warmup"}


def test_a_backbone_that_takes_any_key_gets_none_of_ours():
    overrides = ["backbone._target_=torchvision.models.resnet18", "+backbone.num_classes=5", "+backbone.weights=null"]
    cfg = composed("train", *overrides)
    leave_out(cfg, overrides, pydoc.locate)
    assert cfg.backbone == {"_target_": "torchvision.models.resnet18", "num_classes": 5, "weights": None}
    with pytest.raises(ValueError, match=r"^embedder\.features=5 is needed: the backbone, a ResNet"):
        check_config(cfg)


@pytest.mark.parametrize("key", ["optimizer.momentum=0.5", "+optimizer.nosuch=1", "optimizer.fused=true"])
def test_what_the_user_gives_is_not_left_out(tmp_path, key):
    with pytest.raises(ValueError, match=rf"^{key.lstrip('+').partition('=')[0]} is no key"):
        train(tmp_path, "optimizer=sgd", "optimizer._target_=torch.optim.RAdam", key)


def test_keys_of_a_choice_stay_where_its_target_does():
    cfg = composed("train", "optimizer=sgd")
    assert leave_out(cfg, ["optimizer=sgd"], pydoc.locate) == [] and cfg.optimizer.momentum == 0.9


def test_the_loss_inside_of_another_is_chosen_without_the_keys_of_the_one_before():
    overrides = ["method=abe", "loss@loss.loss=nra", "loss.loss.alpha=3"]
    cfg = composed("train", *overrides)
    told = leave_out(cfg, overrides, pydoc.locate)
    assert told == ["loss.loss.hinge=squared is left out: dml.losses.nra.NRALoss takes none"]
    assert cfg.loss.loss.alpha == 3 and cfg.loss.divergence == 1 and "hinge" not in cfg.loss.loss
    cfg = composed("train", *overrides, "loss.loss.hinge=distance")
    assert leave_out(cfg, [*overrides, "loss.loss.hinge=distance"], pydoc.locate) == []  # it will be refused
