"""Checkpoints: the best by a validation metric, and the last whatever ends the run."""

from datetime import timedelta
from pathlib import Path
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

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the state after the last step, while its epoch is still open: more steps can then follow exactly."""
        # Lightning has the first process tell all the others what time it is, and all wait for that.
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if trainer.world_size == 1 or trainer.global_step % every == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step >= trainer.max_steps:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it again once the last validation may have found a new best."""
        if trainer.global_step >= trainer.max_steps:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state of a run that stopped early."""
        if self._last_global_step_saved != trainer.global_step:
            self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the state at an interrupt."""
        if isinstance(exception, KeyboardInterrupt) and trainer.global_step and trainer.is_global_zero:
            # The other processes are in the middle of a step, and would wait for this one elsewhere.
            trainer.strategy.barrier = lambda *_: None  # type: ignore[method-assign]
            self._save(trainer)
            run = Path(str(self.dirpath)).parent
            print(
                f"\nInterrupted at step {trainer.global_step}. To continue: the same command with resume={run} "
                "(a sweep goes on with the same command alone)"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is remembered: where it writes and when is this run's."""

    def _save(self, trainer: pl.Trainer) -> None:
        self._save_checkpoint(trainer, self.format_checkpoint_name({}))


class BestCheckpoint(ModelCheckpoint):
    """Writes best.ckpt whenever a validation metric (higher is better) reaches a new best."""

    def __init__(self, dirpath: str, monitor: str) -> None:
        super().__init__(dirpath, "best", monitor=monitor, mode="max", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a run whose best.ckpt was copied into this run's folder: Lightning forgets it otherwise."""
        if scores := list(state_dict["best_k_models"].values()):
            here = str(Path(str(self.dirpath)) / "best.ckpt")
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": {here: scores[0]}}
            state_dict |= {"best_model_path": here, "kth_best_model_path": here}
        super().load_state_dict(state_dict)


def make_callbacks(*, folder: str, monitor: str | None, patience: int | None, minutes: float) -> list[pl.Callback]:
    """The checkpoint callbacks, and early stopping if asked for.

    Args:
        folder: for best.ckpt and last.ckpt.
        monitor: validation metric (higher is better) that chooses best.ckpt; None: no choice is made.
        patience: stop after so many validations without a new best; None: never.
        minutes: between two writes of last.ckpt.
    """
    callbacks: list[pl.Callback] = []
    if monitor is not None:
        callbacks.append(BestCheckpoint(folder, monitor))
        if patience is not None:
            callbacks.append(EarlyStopping(monitor, mode="max", patience=patience))
    return [*callbacks, LastCheckpoint(folder, minutes)]  # last, so that it holds what the others have just found
