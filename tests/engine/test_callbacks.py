"""best.ckpt and last.ckpt."""

import signal

import pytest
import pytorch_lightning as pl
import torch

from dml.engine.callbacks import make_callbacks
from dml.engine.stop import StopSignals
from tests.engine.conftest import AtStep, Scores, make_data, make_learner, make_trainer


def run(folder, steps, *scores, callbacks=(), monitor="val/recall@1", patience=None, minutes=60.0, ckpt_path=None):
    with StopSignals() as stop:
        files = make_callbacks(folder=str(folder), monitor=monitor, patience=patience, minutes=minutes, stop=stop)
        trainer = make_trainer(folder, steps, *files, *callbacks)
        data = make_data(validate=bool(scores) or monitor is not None)
        trainer.fit(make_learner(evaluator=Scores(*scores)), data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def names(folder):
    return sorted(path.name for path in folder.glob("*.ckpt"))


@pytest.mark.parametrize(("scores", "best"), [((0.1, 0.9, 0.5), 4), ((0.9, 0.1, 0.5), 2), ((0.1, 0.5, 0.9), 6)])
def test_best_is_the_best_validation_and_last_the_last_step(tmp_path, scores, best):
    run(tmp_path, 7, *scores)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]
    assert step_of(tmp_path / "best.ckpt") == best and step_of(tmp_path / "last.ckpt") == 7


@pytest.mark.parametrize(("scores", "best"), [((0.5, 0.5, 0.1), 4), ((0.1, 0.5, 0.5), 6), ((0.9, 0.5, 0.9), 6)])
def test_of_equal_values_the_later_checkpoint_wins(tmp_path, scores, best):
    run(tmp_path, 7, *scores, 0.2)
    assert step_of(tmp_path / "best.ckpt") == best


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_of_equal_values_the_same_wins_in_a_run_that_goes_on(tmp_path, stop):
    scores = (0.5, 0.9, 0.9, 0.9, 0.1)
    run(tmp_path, stop, *scores)
    resumed = run(tmp_path, 10, *scores[stop // 2 :], ckpt_path=tmp_path / "last.ckpt")
    assert step_of(tmp_path / "best.ckpt") == 8
    assert resumed.checkpoint_callbacks[0].best_model_score == torch.tensor(0.9)


def test_an_equal_value_is_no_new_best_for_patience(tmp_path):
    assert run(tmp_path, 20, 0.1, 0.5, 0.5, 0.5, 0.9, patience=2).global_step == 8
    assert step_of(tmp_path / "best.ckpt") == 8


def test_a_monitor_at_its_maximum_is_told_once(tmp_path, caplog):
    run(tmp_path, 7, 0.9, 1.0, 1.0)
    (told,) = [record.getMessage() for record in caplog.records if "its maximum" in record.getMessage()]
    assert told.startswith("val/recall@1 has reached 1, its maximum, at step 4") and "protocol.monitor" in told
    assert step_of(tmp_path / "best.ckpt") == 6


def test_without_a_monitor_there_is_no_best(tmp_path):
    run(tmp_path, 4, 0.1, 0.9, monitor=None)
    assert names(tmp_path) == ["last.ckpt"]


def test_patience_counts_validations_without_a_new_best(tmp_path):
    assert run(tmp_path / "a", 20, 0.1, 0.5, 0.4, 0.3, 0.9, patience=2).global_step == 8
    assert step_of(tmp_path / "a" / "best.ckpt") == 4
    assert run(tmp_path / "b", 12, 0.1, 0.5, 0.4, 0.3, 0.2, patience=None).global_step == 12


def signalled(at, *numbers):
    """Sends signals to this process in the step after `at`."""

    class Signalled(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == at:
                for number in numbers:
                    signal.raise_signal(number)

    return Signalled()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_waits_for_the_end_of_the_step_and_leaves_its_state(tmp_path, number):
    with pytest.raises(SystemExit):
        run(tmp_path, 9, callbacks=[signalled(2, number)], monitor=None)
    assert step_of(tmp_path / "last.ckpt") == 3


def test_a_signal_waits_for_the_validation_that_follows(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, 9, 0.3, 0.9, 0.1, callbacks=[signalled(3, signal.SIGTERM)])
    assert step_of(tmp_path / "last.ckpt") == step_of(tmp_path / "best.ckpt") == 4


def test_a_second_ctrl_c_waits_for_nothing(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, 9, callbacks=[signalled(2, signal.SIGINT, signal.SIGINT)], monitor=None, minutes=60)
    assert names(tmp_path) == []


def test_nothing_is_written_between_a_step_and_its_validation(tmp_path):
    seen = []

    class Look(pl.Callback):
        def on_validation_start(self, *_):
            seen.append(step_of(tmp_path / "last.ckpt"))

    run(tmp_path, 6, callbacks=[Look()], minutes=1e-9)
    assert seen == [1, 3, 5] and step_of(tmp_path / "last.ckpt") == 6


def test_a_run_that_patience_has_stopped_does_not_train_on(tmp_path):
    scores = (0.1, 0.5, 0.4, 0.3)
    assert run(tmp_path, 20, *scores, patience=2).global_step == 8
    again = run(tmp_path, 20, *scores, patience=2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.global_step == 8 and step_of(tmp_path / "last.ckpt") == 8


def test_last_is_not_written_after_an_error(tmp_path):
    def broken(trainer, _):
        if trainer.global_step == 3:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path, 9, callbacks=[AtStep(broken)], monitor=None)
    assert names(tmp_path) == []


def test_last_is_written_every_few_minutes(tmp_path):
    seen = []
    look = AtStep(lambda trainer, _: seen.append((tmp_path / "last.ckpt").exists() and step_of(tmp_path / "last.ckpt")))
    run(tmp_path, 4, callbacks=[look], monitor=None, minutes=1e-9)
    # Checkpoints come last among the callbacks: each step sees the file of the step before.
    assert seen == [False, 1, 2, 3]
    assert names(tmp_path) == ["last.ckpt"]
