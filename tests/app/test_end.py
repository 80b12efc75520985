"""trainer.max_epochs and its like: validated at the end, with a schedule of the steps that are made."""

import json

import pytest
from omegaconf import OmegaConf

from dml.app.build import build
from dml.app.checks import check_config
from dml.app.run import run_train
from tests.app.conftest import composed, train

EPOCH = 22  # batches of the digits


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs")
    return train(folder, "trainer.max_steps=4000", "trainer.max_epochs=2", "scheduler.warmup=0", "evaluator.ks=[1]")


def test_a_run_of_epochs_is_validated_and_saved(epochs):
    assert epochs.checkpoint("best")["global_step"] == epochs.checkpoint("last")["global_step"] == 2 * EPOCH
    row = json.loads((epochs.folder / "metrics.json").read_text())["row"]
    assert row["steps"] == row["evaluated_step"] == 2 * EPOCH and "val/map" in epochs.metrics


def test_its_schedule_has_its_steps(epochs):
    assert OmegaConf.load(epochs.folder / "config.yaml").scheduler.steps == 2 * EPOCH
    (schedule,) = epochs.checkpoint()["lr_schedulers"]
    assert schedule["_last_lr"] == pytest.approx([0], abs=1e-12)


def test_it_is_not_run_again(epochs, capsys):
    given = ("trainer.max_steps=4000", "trainer.max_epochs=2", "scheduler.warmup=0", "evaluator.ks=[1]")
    assert train(epochs.folder, *given).metrics == epochs.metrics
    assert "Finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ("trainer.max_steps=7", 7),
        ("trainer.max_steps=-1 trainer.max_epochs=3", 66),
        ("trainer.max_steps=50 trainer.max_epochs=3", 50),
        ("trainer.max_epochs=3 +trainer.accumulate_grad_batches=4 trainer.max_steps=4000", 18),
        ("trainer.max_epochs=3 +trainer.limit_train_batches=5", 15),
        ("trainer.max_epochs=3 +trainer.limit_train_batches=0.5 trainer.max_steps=4000", 33),
        ("trainer.max_epochs=null +trainer.max_time=00:00:01:00 trainer.max_steps=9", 9),
    ],
)
def test_the_steps_of_a_schedule(trainer, steps):
    for schedule in ("scheduler=warmup_cosine", "+scheduler.T_max=${trainer.max_steps}"):
        cosine = ("scheduler=none", "+scheduler._target_=torch.optim.lr_scheduler.CosineAnnealingLR")
        given = () if schedule.startswith("scheduler=") else cosine
        cfg = composed("train", "logger=none", *given, schedule, "trainer.max_steps=1000", *trainer.split())
        check_config(cfg)
        build(cfg)
        assert cfg.scheduler["T_max" if given else "steps"] == steps


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("trainer.max_steps=-1 scheduler=none", "trainer.max_steps=-1 leaves the run without an end"),
        (
            "trainer.max_steps=-1 +trainer.max_time=00:00:01:00",
            "scheduler.steps cannot be known without trainer.max_steps or trainer.max_epochs: give scheduler.steps=N",
        ),
        ("+trainer.limit_train_batches=0", "trainer.limit_train_batches=0 is not possible"),
        ("+trainer.limit_val_batches=0", "trainer.limit_val_batches=0 is not possible"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=true is not possible"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 is not possible"),
        (
            "scheduler=plateau protocol=paper",
            "scheduler=ReduceLROnPlateau looks at validations, and protocol=paper has none",
        ),
        ("scheduler=plateau scheduler.mode=min", "scheduler.mode=max is needed: of protocol.monitor=val/map more"),
        (
            "scheduler._target_=timm.scheduler.CosineLRScheduler +scheduler.t_initial=4",
            "scheduler._target_=timm.scheduler.CosineLRScheduler is no schedule of torch (an LRScheduler)",
        ),
        ("optimizer._target_=torch.optim.LBFGS", "optimizer._target_=torch.optim.LBFGS is not possible: it computes"),
        ("optimizer._target_=torch.optim.SparseAdam", "optimizer._target_=torch.optim.SparseAdam is not possible: "),
        ("+callbacks.mine._target_=builtins.dict", "callbacks.mine._target_=builtins.dict is no pytorch_lightning.C"),
        ("+callbacks.mine.patience=3", "callbacks.mine={'patience': 3} is not possible: it must have a _target_"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, overrides, said):
    with pytest.raises(ValueError) as caught:
        train(tmp_path, *overrides.split())
    (line,) = str(caught.value).splitlines()
    assert line.startswith(said)


def test_an_interval_of_more_steps_than_an_epoch_has(tmp_path):
    with pytest.raises(ValueError, match=r"^trainer\.check_val_every_n_epoch=2 counts epochs.*interval=1\.0 for its"):
        run_train(composed("train", "logger=none", "trainer.check_val_every_n_epoch=2", folder=tmp_path))
