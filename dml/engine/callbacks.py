"""Checkpoints: the best by a validation metric, and the last, which a run goes on from as if nothing had happened."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, Timer
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from dml.engine.gather import add_over_ranks
from dml.engine.stop import StopSignals

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt after every validation, every few minutes, at the end, and when a signal ends the run.

    Always between two steps, and never between a step and the validation that follows it: the state that goes on from
    there is then one that the run without a stop has been in, and no validation is left out or done by halves.

    Whatever ends the run (steps, epochs, time, patience, a callback that sets `should_stop`), its last step is
    validated, once, and then written.

    Args:
        path: of the file.
        minutes: between two writes.
        stop: the signals.
    """

    def __init__(self, path: Path, minutes: float, stop: StopSignals) -> None:
        self._path, self._seconds, self._stop = path, 60 * minutes, stop
        self._written = time.monotonic()
        self._validated: int | None = None  # the step that was validated last
        self._ended: int | None = None  # the step that the run has ended with
        self._stopped = False  # by `should_stop`, which Lightning forgets

    def state_dict(self) -> dict[str, Any]:
        """Whether and how the run has ended."""
        return {"ended": self._ended, "stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know of a run that has ended."""
        self._ended, self._stopped = state_dict["ended"], state_dict["stopped"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that was stopped does not train on; one that has reached its limit does, if that is further now."""
        trainer.should_stop |= self._stopped

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals wait for the end of a step."""
        self._stop.listen()  # Lightning has put its own handlers there, which write elsewhere and stop one process
        self._stop.between_steps = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the state if it is time; the epoch is still open, so that more steps can follow exactly."""
        if _ends_here(trainer):
            # Here, and not by Lightning after this hook: from a state between the two it goes on exactly, also with
            # more steps, at the end of an epoch and with another interval of validation.
            self._end(trainer)
            trainer.fit_loop.epoch_loop._skip_next_val = True
            return
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        # Processes have to agree, and wait for each other to do so: not at every step.
        if (trainer.world_size == 1 or trainer.global_step % every == 0) and not _validation_follows(trainer):
            self._between_steps(trainer, write=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state with what the validation has found."""
        if not trainer.sanity_checking:
            self._validated = trainer.global_step
            self._between_steps(trainer, write=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal need not wait. What is asked to stop at the end of an epoch ends only here."""
        if self._ended != trainer.global_step:
            self._end(trainer)
        self._stop.between_steps = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Nor after an error, whose state may be broken and is not written."""
        self._stop.between_steps = False

    def _end(self, trainer: pl.Trainer) -> None:
        """Validate the last step, unless that is done, and write the state."""
        self._ended, self._stopped = trainer.global_step, _is_stopped(trainer)
        if self._validated == trainer.global_step or not _validate(trainer):  # which writes too
            self._between_steps(trainer, write=True)

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


def _ends_here(trainer: pl.Trainer) -> bool:
    """Whether no step follows the one just made, as far as can be known before its validation."""
    loop = trainer.fit_loop
    at_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    current: Any = loop.epoch_progress.current
    epochs = current.processed + loop.epoch_loop._num_ready_batches_reached()
    at_epochs = trainer.max_epochs not in (None, -1) and epochs >= trainer.max_epochs
    return at_steps or at_epochs or (trainer.should_stop and loop._can_stop_early)


def _is_stopped(trainer: pl.Trainer) -> bool:
    """Whether a callback has asked for the end; not the time limit, which is told anew when a run goes on."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    over = any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)
    return trainer.should_stop and not over


def _validate(trainer: pl.Trainer) -> bool:
    """Validate now, in the way of Lightning's training loop; returns whether there is anything to validate."""
    loop, logged = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    loop.setup_data()
    if loop.skip:
        return False
    trainer.lightning_module.zero_grad()  # their memory
    first = logged._first_loop_iter
    trainer.validating = True
    loop.run()
    trainer.training = True
    logged._first_loop_iter = first
    return True


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
    """Stops after so many validations without a new best, where an equal value is none."""

    def __init__(self, monitor: str, patience: int) -> None:
        # At the validation, also where that ends an epoch: last.ckpt is written then.
        super().__init__(monitor, mode="max", patience=patience, check_on_train_epoch_end=False)


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
            callbacks.append(Patience(monitor, patience))
    last = LastCheckpoint(Path(folder) / "last.ckpt", minutes, stop)
    return [*callbacks, last]  # last, so that it holds what the others have just found
