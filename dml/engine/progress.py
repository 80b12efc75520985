"""A progress bar over the steps of a run."""

import logging
import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.file_proxy import FileProxy

from dml.engine.schedule import steps_of_run


class StepProgressBar(RichProgressBar):
    """Lightning's rich bar, counting the steps of the run: an epoch of group sampling is a few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, Any] = {}
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if isinstance(sys.stdout, FileProxy) and not self._handlers:
            # At a terminal: what is logged goes above the bar, as what is printed does, and does not tear it.
            for handler in logging.getLogger().handlers:
                if type(handler) is logging.StreamHandler and handler.stream in (sys.__stdout__, sys.__stderr__):
                    self._handlers.append((handler, handler.setStream(sys.stdout)))

    def _stop_progress(self) -> None:
        while self._handlers:
            handler, stream = self._handlers.pop()
            handler.setStream(stream)
        super()._stop_progress()

    @property
    def total_train_batches(self) -> int | float:
        """Steps of the whole run; without a limit of steps or epochs nobody knows."""
        steps = steps_of_run(
            self.trainer.num_training_batches,
            max_steps=self.trainer.max_steps,
            max_epochs=self.trainer.max_epochs,
            accumulated=self.trainer.accumulate_grad_batches,
        )
        return float("inf") if steps is None else steps

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def _update(self, progress_bar_id: Any, current: int, visible: bool = True, hard: bool = False) -> None:
        if progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            current = self.trainer.global_step
        super()._update(progress_bar_id, current, visible, hard)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar once; later epochs go on with it."""
        if self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss, without the logger's version number."""
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name == "train/loss"}

    def _update_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # At the steps that are logged: who reads the loss at every step waits for the GPU at every step.
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            super()._update_metrics(trainer, pl_module)

    def show(self, description: str, done: int, of: int) -> None:
        """A bar of its own for work within a step, which goes when all is done."""
        if self.progress is None or not self.is_enabled:
            return
        if description not in self._shown:
            self._shown[description] = self._add_task(of, description)
        task = self._shown[description]
        self.progress.update(task, completed=done, refresh=True)
        if done == of:
            self.progress.remove_task(self._shown.pop(description))
