"""best.ckpt and last.ckpt."""

import pytest
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from dml.engine.callbacks import make_callbacks
from tests.engine.conftest import AtStep, Scores, make_data, make_learner, make_trainer


def run(folder, steps, *scores, callbacks=(), monitor="val/recall@1", patience=None, minutes=5.0):
    files = make_callbacks(folder=str(folder), monitor=monitor, patience=patience, minutes=minutes)
    trainer = make_trainer(folder, steps, *files, *callbacks)
    trainer.fit(make_learner(evaluator=Scores(*scores)), make_data())
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


def test_without_a_monitor_there_is_no_best(tmp_path):
    run(tmp_path, 4, 0.1, 0.9, monitor=None)
    assert names(tmp_path) == ["last.ckpt"]


def test_patience_counts_validations_without_a_new_best(tmp_path):
    assert run(tmp_path / "a", 20, 0.1, 0.5, 0.4, 0.3, 0.9, patience=2).global_step == 8
    assert step_of(tmp_path / "a" / "best.ckpt") == 4
    assert run(tmp_path / "b", 12, 0.1, 0.5, 0.4, 0.3, 0.2, patience=None).global_step == 12


def interrupt(error, at, callback=AtStep):
    def act(trainer, _):
        if trainer.global_step == at:
            raise error

    return callback(act)


def test_last_is_written_at_ctrl_c(tmp_path):
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, 9, callbacks=[interrupt(KeyboardInterrupt(), 3)], monitor=None)
    assert caught.value.code != 0
    assert step_of(tmp_path / "last.ckpt") == 3


def test_ctrl_c_waits_for_no_other_process(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(SingleDeviceStrategy, "barrier", lambda self, name=None: waited.append(name))

    class Interrupted(AtStep):
        def on_exception(self, *_):  # called before the checkpoint's, which comes last
            waited.clear()

    with pytest.raises(SystemExit):
        run(tmp_path, 9, callbacks=[interrupt(KeyboardInterrupt(), 3, Interrupted)], monitor=None)
    assert waited == [] and step_of(tmp_path / "last.ckpt") == 3


def test_last_is_not_written_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path, 9, callbacks=[interrupt(RuntimeError("broken"), 3)], monitor=None)
    assert names(tmp_path) == []


def test_last_is_written_every_few_minutes(tmp_path):
    seen = []
    look = AtStep(lambda trainer, _: seen.append((tmp_path / "last.ckpt").exists() and step_of(tmp_path / "last.ckpt")))
    run(tmp_path, 4, callbacks=[look], monitor=None, minutes=1e-9)
    # Checkpoints come last among the callbacks: each step sees the file of the step before.
    assert seen == [False, 1, 2, 3]
    assert names(tmp_path) == ["last.ckpt"]
