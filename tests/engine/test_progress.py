"""The bar over the steps of a run; and a step is not read by the host, which would wait for the GPU."""

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

from dml.engine import finite
from dml.engine.callbacks import make_callbacks
from dml.engine.progress import StepProgressBar
from dml.engine.stop import StopSignals
from tests.engine.conftest import AtStep, make_data, make_learner, make_trainer


class Reads(TorchDispatchMode):
    """Counts how often a value of a tensor is asked for: item(), float(), bool()."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


def reads(folder, steps, every):
    """Of a fit with all that a user's run has, looked at as on a GPU; validated and checkpointed once, at its end."""
    files = make_callbacks(folder=str(folder), monitor="val/recall@1", patience=None, minutes=5, stop=StopSignals())
    trainer = make_trainer(
        folder,
        steps,
        *files,
        StepProgressBar(),
        logger=CSVLogger(folder),
        log_every_n_steps=every,
        val_check_interval=steps,
        enable_progress_bar=True,
    )
    with Reads() as counted:
        trainer.fit(make_learner(), make_data(workers=1))  # which draws the crops: their angles are read, on the host
    return counted.count


def test_no_step_is_read_but_those_that_are_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "READ_AT_ONCE", frozenset())
    short, long = reads(tmp_path / "a", 6, every=100), reads(tmp_path / "b", 18, every=100)
    assert long - short == 12  # the watch alone, which reads its copy on the host
    logged = reads(tmp_path / "c", 18, every=2) - long
    # The loss for the logger, the curves and the bar, which is drawn again where an epoch ends, and the diagnostics.
    assert 9 * 2 <= logged < 9 * 11


@pytest.mark.parametrize("every", [1, 3])
def test_the_bar_shows_the_loss_of_the_last_logged_step(tmp_path, every):
    losses, shown = [], []

    class Bar(StepProgressBar):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            shown.append(self._metric_component._metrics.get("train/loss"))

    keep = AtStep(lambda trainer, _: losses.append(float(trainer.callback_metrics["train/loss"])))
    make_trainer(tmp_path, 7, Bar(), keep, enable_progress_bar=True, log_every_n_steps=every).fit(
        make_learner(), make_data()
    )
    assert shown == [losses[step // every * every - 1] if step >= every else None for step in range(1, 8)]


def test_the_bar_counts_the_steps_of_the_run(tmp_path):
    counted = []

    class Bar(StepProgressBar):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            tasks = [task for task in self.progress.tasks if task.description.startswith("Training")]
            counted.extend((len(tasks), task.completed, task.total) for task in tasks)

    # 12 steps are two epochs of five batches and a part of a third.
    make_trainer(tmp_path, 12, Bar(), enable_progress_bar=True).fit(make_learner(), make_data())
    assert counted == [(1, step, 12) for step in range(1, 13)]
