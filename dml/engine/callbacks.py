"""Checkpoints: the best by a validation metric, and the last, which a run goes on from as if nothing had happened."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from dml.engine.gather import add_over_ranks
from dml.engine.stop import StopSignals

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt after every validation, every few minutes, at the end, and when a signal ends the run.

    Always between two steps, and never between a step and the validation that follows it: the state that goes on from
    there is then one that the run without a stop has been in, and no validation is left out or done by halves.

    Args:
        path: of the file.
        minutes: between two writes.
        stop: the signals.
    """

    def __init__(self, path: Path, minutes: float, stop: StopSignals) -> None:
        self._path, self._seconds, self._stop = path, 60 * minutes, stop
        self._written = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals wait for the end of a step."""
        self._stop.listen()  # Lightning has put its own handlers there, which write elsewhere and stop one process
        self._stop.between_steps = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the state if it is time; the epoch is still open, so that more steps can follow exactly."""
        at_end = trainer.global_step >= trainer.max_steps
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        # Processes have to agree, and wait for each other to do so: not at every step.
        if (at_end or trainer.world_size == 1 or trainer.global_step % every == 0) and not _validation_follows(trainer):
            self._between_steps(trainer, write=at_end)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state with what the validation has found."""
        if not trainer.sanity_checking:
            self._between_steps(trainer, write=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal need not wait."""
        self._stop.between_steps = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Nor after an error, whose state may be broken and is not written."""
        self._stop.between_steps = False

    def _between_steps(self, trainer: pl.Trainer, *, write: bool) -> None:
        due = time.monotonic() - self._written >= self._seconds
        flags = np.array([due, self._stop.received is not None], dtype=np.int64)
        due, stop = add_over_ranks(flags, trainer.strategy.root_device) > 0
        if write or due or stop:
            trainer.save_checkpoint(self._path, weights_only=False)
            self._written = time.monotonic()
        if stop:
            if trainer.is_global_zero:
                print(
                    f"\nThe state after step {trainer.global_step} is written. To continue: the same command with "
                    f"resume={self._path.parents[1]} (a sweep goes on with the same command alone)"
                )
            raise KeyboardInterrupt


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning is about to validate, before the next step."""
    loop = trainer.fit_loop.epoch_loop
    if not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
        return False
    loop.val_loop.setup_data()  # as it does first itself; without images of a validation part nothing follows
    return not loop.val_loop.skip


class BestCheckpoint(ModelCheckpoint):
    """Writes best.ckpt whenever a validation metric (higher is better) is as good as its best or better.

    So of equal values the later checkpoint wins: it has trained longer, and the first of many would be chosen by
    chance. A metric that has reached 1, its maximum, can choose no more; that is told.
    """

    def __init__(self, dirpath: str, monitor: str) -> None:
        # Only after a validation: at the end of an epoch an old value would count as equal, with other weights.
        super().__init__(
            dirpath, "best", monitor=monitor, mode="max", enable_version_counter=False, save_on_train_epoch_end=False
        )
        self._told = False

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether this value is the best so far, as Lightning asks before it writes."""
        if current is None:
            return False
        if current >= 1 and not self._told:
            self._told = True
            rank_zero_only(log.warning)(
                f"{self.monitor} has reached 1, its maximum, at step {trainer.global_step}: from here on it cannot "
                "tell checkpoints apart, and the latest is kept. A finer protocol.monitor (val/map@r, val/map) can, or "
                "a larger validation part (data.val_fraction)"
            )
        is_best = all(bool(current >= best) for best in self.best_k_models.values())  # one, or none yet
        return trainer.strategy.reduce_boolean_decision(is_best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a run whose best.ckpt was copied into this run's folder: Lightning forgets it otherwise."""
        if scores := list(state_dict["best_k_models"].values()):
            here = str(Path(str(self.dirpath)) / "best.ckpt")
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": {here: scores[0]}}
            state_dict |= {"best_model_path": here, "kth_best_model_path": here}
        super().load_state_dict(state_dict)


class Patience(EarlyStopping):
    """Stops after so many validations without a new best, where an equal value is none; a run that had stopped so does
    not train on.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning forgets that it had stopped."""
        if self.wait_count >= max(1, self.patience):
            trainer.should_stop = True


def make_callbacks(
    *, folder: str, monitor: str | None, patience: int | None, minutes: float, stop: StopSignals
) -> list[pl.Callback]:
    """The checkpoint callbacks, and early stopping if asked for.

    Args:
        folder: for best.ckpt and last.ckpt.
        monitor: validation metric (higher is better) that chooses best.ckpt; None: no choice is made.
        patience: stop after so many validations without a new best; None: never.
        minutes: between two writes of last.ckpt.
        stop: the signals that end the run.
    """
    callbacks: list[pl.Callback] = []
    if monitor is not None:
        callbacks.append(BestCheckpoint(folder, monitor))
        if patience is not None:
            callbacks.append(Patience(monitor, mode="max", patience=patience))
    last = LastCheckpoint(Path(folder) / "last.ckpt", minutes, stop)
    return [*callbacks, last]  # last, so that it holds what the others have just found
