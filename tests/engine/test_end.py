"""Whatever ends a run: its last step is validated once and written, and going on is exact."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from dml.engine.callbacks import make_callbacks
from dml.engine.stop import StopSignals
from tests.engine.conftest import AtStep, Scores, make_data, make_learner, make_trainer
from tests.engine.test_callbacks import signalled, step_of


class Stop(pl.Callback):
    """Asks for the end in a hook, at a step."""

    def __init__(self, hook, step):
        self.step = step
        setattr(self, hook, self.act)

    def act(self, trainer, *_):
        trainer.should_stop |= trainer.global_step == self.step


class Validated(pl.Callback):
    """Remembers the steps at which a validation began."""

    def __init__(self):
        self.steps = []

    def on_validation_start(self, trainer, *_):
        self.steps.append(trainer.global_step)


def run(folder, *callbacks, ckpt_path=None, patience=None, validate=True, scores=(), **given):
    """An epoch is five batches; at most 100 steps, and a validation every 100, unless told otherwise."""
    seen = Validated()
    monitor = "val/recall@1" if validate else None
    with StopSignals() as stop:
        files = make_callbacks(folder=str(folder), monitor=monitor, patience=patience, minutes=60, stop=stop)
        given = {"steps": 100, "val_check_interval": 100, **given}
        trainer = make_trainer(folder, given.pop("steps"), *callbacks, seen, *files, **given)
        learner = make_learner(
            evaluator=Scores(*scores),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        )
        trainer.fit(learner, make_data(validate=validate), ckpt_path=ckpt_path, weights_only=True)
    return trainer, seen.steps


ENDS = {
    "steps": (7, (), {"steps": 7}),
    "epochs": (10, (), {"max_epochs": 2}),
    "epochs without a limit of steps": (10, (), {"max_epochs": 2, "steps": -1}),
    "epochs of fewer batches": (6, (), {"max_epochs": 2, "limit_train_batches": 3}),
    "epochs of accumulated batches": (6, (), {"max_epochs": 2, "accumulate_grad_batches": 2}),
    "time": (1, (), {"max_time": timedelta(microseconds=1)}),
    "a step": (7, (("on_train_batch_end", 7),), {}),
    "the beginning of a step": (8, (("on_train_batch_start", 7),), {}),
    "an epoch's end": (5, (("on_train_epoch_end", 5),), {}),
    "a validation": (4, (("on_validation_end", 4),), {"val_check_interval": 2}),
    "a validation that ends an epoch": (5, (("on_train_epoch_end", 5),), {"val_check_interval": 5}),
    "every second epoch": (15, (), {"max_epochs": 3, "check_val_every_n_epoch": 2, "val_check_interval": 1.0}),
    "shares of an epoch": (7, (), {"steps": 7, "check_val_every_n_epoch": 1, "val_check_interval": 0.5}),
}
BEFORE = {  # validations before that of the last step
    "a validation": [2],
    "every second epoch": [10],
    "shares of an epoch": [2, 4],
}


@pytest.mark.parametrize("end", ENDS)
def test_the_last_step_is_validated_once_and_written(tmp_path, end):
    step, stops, given = ENDS[end]
    trainer, validated = run(tmp_path, *(Stop(*stop) for stop in stops), **given)
    assert trainer.global_step == step
    assert validated == [*BEFORE.get(end, []), step]
    assert step_of(tmp_path / "last.ckpt") == step
    assert (tmp_path / "best.ckpt").is_file()
    # Whoever goes on from there does not train, nor validate again.
    trainer, validated = run(tmp_path, ckpt_path=str(tmp_path / "last.ckpt"), **given)
    assert trainer.global_step == step and validated == []


@pytest.mark.parametrize("end", ["epochs", "an epoch's end"])
def test_without_a_validation_part_the_last_step_is_written(tmp_path, end):
    step, stops, given = ENDS[end]
    _, validated = run(tmp_path, *(Stop(*stop) for stop in stops), validate=False, **given)
    assert validated == [] and step_of(tmp_path / "last.ckpt") == step


def state(folder):
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    files = {key: value for key, value in stored["callbacks"].items() if key in ("LastCheckpoint", "Patience")}
    return [stored[part] for part in ("global_step", "epoch", "optimizer_states", "lr_schedulers", "RetrievalData")], (
        stored["state_dict"],
        files,
    )


def same(found, wanted):
    assert str(found) == str(wanted)  # to the digits that are printed
    for a, b in zip(found[1][0].values(), wanted[1][0].values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("step", range(1, 11))
def test_a_run_of_epochs_that_was_stopped_goes_on_exactly(tmp_path, step):
    given = {"max_epochs": 2, "val_check_interval": 3, "patience": 9, "scores": (0.1, 0.9, 0.5, 0.4)}
    run(tmp_path / "whole", **given)
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", signalled(step - 1, 15), **given)
    done = step // 3 + (step == 10)
    given["scores"] = given["scores"][done:]
    trainer, validated = run(tmp_path / "parts", ckpt_path=str(tmp_path / "parts" / "last.ckpt"), **given)
    assert trainer.global_step == 10 and validated == [s for s in (3, 6, 9, 10) if s > step]
    same(state(tmp_path / "parts"), state(tmp_path / "whole"))


@pytest.mark.parametrize(("first", "interval"), [(1, 100), (1, 5), (2, 3)])
def test_a_finished_run_goes_on_with_more_epochs(tmp_path, first, interval):
    run(tmp_path / "whole", max_epochs=3)
    run(tmp_path / "parts", max_epochs=first, val_check_interval=interval)
    trainer, validated = run(tmp_path / "parts", max_epochs=3, ckpt_path=str(tmp_path / "parts" / "last.ckpt"))
    assert trainer.global_step == 15 and validated == [15]
    same(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_a_time_limit_that_is_longer_now_lets_the_run_go_on(tmp_path):
    run(tmp_path, steps=3, max_time=timedelta(microseconds=1))
    assert step_of(tmp_path / "last.ckpt") == 1
    trainer, _ = run(tmp_path, steps=3, max_time=timedelta(hours=1), ckpt_path=str(tmp_path / "last.ckpt"))
    assert trainer.global_step == 3 and any(isinstance(callback, Timer) for callback in trainer.callbacks)


def test_the_weights_of_the_last_step_are_those_that_were_validated(tmp_path):
    steps = []
    run(tmp_path, AtStep(lambda trainer, _: steps.append(trainer.global_step)), max_epochs=1, scores=(0.3,))
    best, last = (torch.load(tmp_path / name, weights_only=True) for name in ("best.ckpt", "last.ckpt"))
    assert steps == [1, 2, 3, 4, 5] and best["global_step"] == last["global_step"] == 5
    assert all(torch.equal(best["state_dict"][name], value) for name, value in last["state_dict"].items())
