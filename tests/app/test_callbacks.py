"""Callbacks of the user's own, and several loggers, by config."""

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.errors import CompactHydraException

from dml.app.checks import check_config
from dml.app.command import arranged
from dml.app.errors import as_user_error
from dml.app.paths import expand_home
from dml.app.run import run_train
from tests.app.conftest import composed, train


class Counts(pl.Callback):
    """Counts steps, and stops at one."""

    def __init__(self, *, last: int):
        self.last, self.count = last, 0

    def on_train_batch_end(self, trainer, *_):
        self.count += 1
        trainer.should_stop = self.count >= self.last

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


MINE = (f"+callbacks.mine._target_={__name__}.Counts", "+callbacks.mine.last=4")


def test_a_callback_of_ones_own_may_end_the_run_and_is_in_last_ckpt_and_row(tmp_path):
    run = train(tmp_path, *MINE, "trainer.max_steps=50", "protocol.patience=3")
    stored = run.checkpoint()
    assert stored["global_step"] == run.checkpoint("best")["global_step"] == 4
    assert stored["callbacks"]["Counts"] == {"count": 4}
    row = json.loads((tmp_path / "metrics.json").read_text())["row"]
    assert row["callbacks"] == {"mine": {"_target_": f"{__name__}.Counts", "last": 4}} and row["steps"] == 4
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+callbacks.mine.first=3", r"^callbacks\.mine\.first is no key: there is last"),
        ("~callbacks.mine.last", r"^callbacks\.mine\.last is missing"),
    ],
)
def test_its_arguments_are_checked(tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path, *MINE, override)


STOPPING = "pytorch_lightning.callbacks.EarlyStopping"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("+callbacks.x.monitor=val_loss", "callbacks.x.monitor=val_loss is not measured: val/recall@1, "),
        ("+callbacks.x.monitor=val/recall@3", "callbacks.x.monitor=val/recall@3 is not measured: val/recall@1, "),
        (
            "protocol=paper +callbacks.x.monitor=val/map",
            "callbacks.x.monitor=val/map is not measured: train/loss are",
        ),
        ("+callbacks.x.monitor=val/map", ""),
        ("+callbacks.x.monitor=train/loss", ""),
        ("protocol=paper protocol.watch_test=true +callbacks.x.monitor=watched_test/map", ""),
        (f"+callbacks.x.monitor=mine {' '.join(MINE)}", ""),  # which may log it
    ],
)
def test_a_metric_that_is_not_measured_is_told_before_the_run(overrides, said):
    cfg = composed("train", f"+callbacks.x._target_={STOPPING}", *overrides.split())
    if not said:
        check_config(cfg)
        return
    with pytest.raises(ValueError) as caught:
        check_config(cfg)
    assert str(caught.value).startswith(said)


def test_keys_that_are_numbers():
    cfg = composed("train", f"+callbacks.mine._target_={__name__}.Counts", "+callbacks.mine.last={0:2,10:{file:'~/x'}}")
    expand_home(cfg)
    assert cfg.callbacks.mine.last == {0: 2, 10: {"file": str(Path("~/x").expanduser())}}


def test_what_lightning_refuses_while_it_trains_is_one_line(tmp_path):
    monitor = "+callbacks.lr._target_=pytorch_lightning.callbacks.LearningRateMonitor"
    with pytest.raises(CompactHydraException, match=r"^Cannot use `LearningRateMonitor` callback with .* no logger"):
        train(tmp_path, monitor, run=as_user_error(run_train))


def test_several_loggers(tmp_path):
    overrides, _ = arranged(["logger=[csv,more]".replace("more", "wandb"), "logger.csv.name=mine", "seed=3"])
    assert overrides == ["logger=none", "+logger@logger.csv=csv", "+logger@logger.wandb=wandb", *overrides[3:]]
    check_config(composed("train", *overrides))
    train(tmp_path, "logger=none", *overrides[1:])
    assert (tmp_path / "mine" / "version_0" / "metrics.csv").is_file()
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("+logger.csv.nosuch=1", "logger.csv.nosuch is no key: there is "),
        ("+logger.b.name=1", "logger.b={'name': 1} is not possible: it must have a _target_"),
        ("+logger@logger.w=wandb +logger.w.nosuch=1", "logger.nosuch is no key: neither of Lightning's WandbLogger"),
    ],
)
def test_each_logger_is_checked(overrides, said):
    with pytest.raises(ValueError) as caught:
        check_config(composed("train", "logger=none", "+logger@logger.csv=csv", *overrides.split()))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(said)
