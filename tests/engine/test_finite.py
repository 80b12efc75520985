"""A loss that is not finite ends the run before anything that came of it is evaluated or saved, looked at now or later.

`later` is how a GPU's losses are looked at, here with the CPU's.
"""

import signal

import pytest
import torch

from dml.engine import finite
from dml.engine.callbacks import make_callbacks
from dml.engine.finite import NonFiniteLossError
from dml.engine.stop import StopSignals
from tests.engine.conftest import AtStep, OwnWeights, Scores, make_data, make_learner, make_trainer


@pytest.fixture
def later(monkeypatch):
    monkeypatch.setattr(finite, "READ_AT_ONCE", frozenset())


def run(folder, steps, broken, *callbacks, interval=9):
    """Train with a loss that is NaN at the step `broken`; a checkpoint after every step."""
    learner = make_learner(loss=OwnWeights({broken: float("nan")}), evaluator=Scores())
    found = pytest.raises(NonFiniteLossError, match=rf"the loss is nan at step {broken}\b.*optimizer\.lr")
    with StopSignals() as stop, found:
        files = make_callbacks(folder=str(folder), monitor=None, patience=None, minutes=1e-9, stop=stop)
        trainer = make_trainer(folder, steps, *callbacks, *files, val_check_interval=interval)
        trainer.fit(learner, make_data())
    return trainer, learner


def last(folder):
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in stored["state_dict"].values())
    return stored["global_step"]


def test_at_once_the_optimiser_never_sees_it(tmp_path):
    trainer, learner = run(tmp_path, 9, 3)
    assert trainer.global_step == last(tmp_path) == 3
    assert learner.embedder.head.weight.isfinite().all()


def test_later_is_one_step_later_and_names_the_step_it_was(tmp_path, later):
    make_trainer(tmp_path, 9).fit(make_learner(), make_data())  # a sound run is not disturbed
    learner, steps = make_learner(loss=OwnWeights({3: float("nan")})), []
    count = AtStep(lambda trainer, _: steps.append(trainer.global_step))
    with pytest.raises(NonFiniteLossError, match=r"at step 3\b"):
        make_trainer(tmp_path, 9, count, val_check_interval=9).fit(learner, make_data())
    assert steps == [1, 2, 3, 4]
    assert not learner.embedder.head.weight.isfinite().all()  # which is why nothing may be saved now


@pytest.mark.parametrize(("steps", "broken"), [(9, 3), (4, 3)])
def test_later_no_checkpoint_holds_what_came_of_it(tmp_path, later, steps, broken):
    run(tmp_path, steps, broken)
    assert last(tmp_path) == broken


def test_later_the_last_step_is_looked_at_without_any_checkpoint(tmp_path, later):
    with pytest.raises(NonFiniteLossError, match=r"at step 3\b"):
        make_trainer(tmp_path, 4, val_check_interval=9).fit(
            make_learner(loss=OwnWeights({3: float("nan")})), make_data(validate=False)
        )


def test_later_nothing_broken_is_evaluated(tmp_path, later):
    trainer, learner = run(tmp_path, 9, 3, interval=4)
    assert trainer.global_step == 4 and learner.evaluator.calls == []


def test_later_ctrl_c_saves_nothing_broken(tmp_path, later):
    def interrupt(trainer, _):
        if trainer.global_step == 4:
            signal.raise_signal(signal.SIGINT)

    run(tmp_path, 9, 3, AtStep(interrupt))
    assert last(tmp_path) == 3
