"""What a run says while it trains: lines into its log, numbers to its loggers."""

import logging
import math
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dml.engine.schedule import steps_of_run
from dml.words import counted

log = logging.getLogger(__name__)


class RunLog(pl.Callback):
    """A line at the start, at each validation (without a validation part: as often) and at the end.

    At the steps that are logged it gives the loggers train/learning_rate, train/images_per_second (of training alone)
    and train/peak_memory_gb (of this process: on its GPU, or of its memory). Times enter no result.

    Args:
        monitor: metric (higher is better) that validations are told by; None: the run has none.
    """

    def __init__(self, monitor: str | None) -> None:
        self._monitor = monitor
        self._best: tuple[float, int] | None = None  # value, step
        self.before: dict[str, float] | None = None  # what a validation before the first step found, if there was one
        self._images = 0
        self._line_clock, self._logged_clock = _Clock(), _Clock()
        self._began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and what was before it."""
        return {"best": self._best, "before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best of before."""
        self._best = state_dict["best"] and tuple(state_dict["best"])
        self.before = state_dict.get("before")  # older runs have none

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what the whole validation part says of the weights that the run begins with, and give it to the loggers.

        Lightning calls this its sanity check, logs nothing of it, and leaves it out where a run goes on.
        """
        self.before = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.before, step=0)
        if self._monitor in self.before:
            self._say(f"step 0: {self._monitor} {self.before[self._monitor]:.4f}, before training")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell how long the run is."""
        self._began = time.monotonic()
        self._line_clock.start()
        self._logged_clock.start()
        self._say(f"{_of(trainer)}; an epoch is {trainer.num_training_batches} batches")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Give the loggers what is told of a step, if it is logged."""
        self._images += len(batch[1]) * trainer.world_size  # to one image a process
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        loop = trainer.fit_loop.epoch_loop
        logged = every and (loop._batches_that_stepped + 1) % every == 0 and not loop._should_accumulate()
        if trainer.loggers and logged:
            found = {"learning_rate": _rate(trainer), "peak_memory_gb": _peak_memory(pl_module.device)}
            if (rate := self._logged_clock.rate(self._images)) is not None:
                found["images_per_second"] = rate
            pl_module.log_dict({f"train/{name}": value for name, value in found.items()})
        fetcher = trainer.fit_loop._data_fetcher
        if self._monitor is None and loop._should_check_val_fx(fetcher) and loop.val_loop.skip:  # type: ignore[arg-type]
            self._say(self._line(trainer, []))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training rests."""
        self._line_clock.stop()
        self._logged_clock.stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what the validation has found."""
        if trainer.sanity_checking:
            return
        found = []
        if self._monitor is not None and self._monitor in trainer.callback_metrics:
            value = float(trainer.callback_metrics[self._monitor])
            if self._best is None or value >= self._best[0]:  # of equal values the later, as for best.ckpt
                self._best = value, trainer.global_step
            found = [f"{self._monitor} {value:.4f}", f"best {self._best[0]:.4f} (step {self._best[1]})"]
        self._say(self._line(trainer, found))
        self._line_clock.start()
        self._logged_clock.start()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell why the run ended."""
        took = timedelta(seconds=round(time.monotonic() - self._began))
        best = f"; best {self._monitor} {self._best[0]:.4f} at step {self._best[1]}" if self._best is not None else ""
        self._say(f"ended at step {trainer.global_step} after {took}: {_why(trainer)}{best}")
        before = (self.before or {}).get(str(self._monitor))
        if before is not None and self._best is not None and self._best[0] < before:
            rank_zero_only(log.warning)(
                f"{self._monitor} was {before:.4f} before the first step and is {self._best[0]:.4f} at its best: "
                "training has made it worse. Try a lower optimizer.lr, embedder.normalize=true, a head that learns "
                "first or alone (optimizer.groups, embedder.freeze=backbone), or another loss: docs/training.md"
            )

    def _line(self, trainer: pl.Trainer, found: list[str]) -> str:
        told = [*found, f"learning rate {_rate(trainer):.3g}"]
        if "train/loss" in trainer.callback_metrics:
            told.insert(len(found), f"loss {float(trainer.callback_metrics['train/loss']):.4f}")
        if (rate := self._line_clock.rate(self._images)) is not None:
            told.append(f"{rate:.0f} images/s")
        return f"step {trainer.global_step}: {', '.join(told)}"

    @staticmethod
    @rank_zero_only
    def _say(line: str) -> None:
        log.info(line)


class _Clock:
    """Images a second since it was asked last, without the time that it was stopped."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None

    def rate(self, images: int) -> float | None:
        """Of all images until now; None: too soon to say."""
        if running := self._since is not None:
            self.stop()
        done, seconds = images - self._images, self._seconds
        self._images, self._seconds = images, 0.0
        if running:
            self.start()
        return done / seconds if done > 0 and seconds > 0 else None


def _rate(trainer: pl.Trainer) -> float:
    return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)


def _peak_memory(device: torch.device) -> float:
    """In GB (10^9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _of(trainer: pl.Trainer) -> str:
    steps = steps_of_run(
        trainer.num_training_batches,
        max_steps=trainer.max_steps,
        max_epochs=trainer.max_epochs,
        accumulated=trainer.accumulate_grad_batches,
    )
    done = f", from step {trainer.global_step} on" if trainer.global_step else ""
    return f"training for {steps} steps{done}" if steps is not None else f"training without a limit of steps{done}"


def _why(trainer: pl.Trainer) -> str:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"trainer.max_steps={trainer.max_steps}"
    if trainer.should_stop:
        for callback in callbacks:
            if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
                return "trainer.max_time is over"
            if isinstance(callback, EarlyStopping) and callback.wait_count >= max(1, callback.patience):
                found = counted(callback.wait_count, "validation")
                return f"{found} without a better {callback.monitor} (patience)"
        return "a callback asked for it (should_stop)"
    return f"trainer.max_epochs={trainer.max_epochs}"
