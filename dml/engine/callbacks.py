"""Checkpoints: the best by a validation metric, and the last whatever ends the run."""

from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes last.ckpt every few minutes, at the end, and on Ctrl-C; not after an error, whose state may be broken."""

    def __init__(self, dirpath: str, minutes: float) -> None:
        super().__init__(
            dirpath,
            "last",
            train_time_interval=timedelta(minutes=minutes),
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state."""
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the state at an interrupt."""
        if isinstance(exception, KeyboardInterrupt) and trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self._save_checkpoint(trainer, self.format_checkpoint_name({}))


def make_callbacks(*, folder: str, monitor: str | None, patience: int | None, minutes: float) -> list[pl.Callback]:
    """The checkpoint callbacks, and early stopping if asked for.

    Args:
        folder: for best.ckpt and last.ckpt.
        monitor: validation metric (higher is better) that chooses best.ckpt; None: no choice is made.
        patience: stop after so many validations without a new best; None: never.
        minutes: between two writes of last.ckpt.
    """
    callbacks: list[Any] = [LastCheckpoint(folder, minutes)]
    if monitor is not None:
        callbacks.append(ModelCheckpoint(folder, "best", monitor=monitor, mode="max", enable_version_counter=False))
        if patience is not None:
            callbacks.append(EarlyStopping(monitor, mode="max", patience=patience))
    return callbacks
