"""The curves of a run, for the page that it ends with, whatever loggers it has."""

from typing import Any

import pytorch_lightning as pl

_MOST = 500  # points of a curve: more than a screen shows


class History(pl.Callback):
    """Keeps the loss and the learning rate of the steps that are logged, and what validations find.

    A curve that grows beyond 500 points loses every second one, and from then on takes every second. What is kept
    depends on the steps alone, and is in the checkpoint: a run that goes on has the curves of one that was not stopped.

    Attributes:
        curves: name -> [[step, value], ...].
    """

    def __init__(self) -> None:
        self.curves: dict[str, list[list[float]]] = {}
        self._every: dict[str, int] = {}  # of the points that come, which are taken
        self._seen: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"curves": self.curves, "every": self._every, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves of before."""
        self.curves = {name: [list(point) for point in curve] for name, curve in state_dict["curves"].items()}
        self._every, self._seen = dict(state_dict["every"]), dict(state_dict["seen"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the steps that are logged: reading a loss waits for a GPU."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        loop = trainer.fit_loop.epoch_loop
        if every and trainer.global_step % every == 0 and not loop._should_accumulate():
            if "train/loss" in trainer.callback_metrics:
                self._add("train/loss", trainer.global_step, trainer.callback_metrics["train/loss"])
            rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
            self._add("train/learning_rate", trainer.global_step, max(rates))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what was found."""
        for name, value in trainer.callback_metrics.items():  # at step 0 too, before training
            if name.startswith(("val/", "watched_test/")):
                self._add(name, trainer.global_step, value)

    def _add(self, name: str, step: int, value: Any) -> None:
        seen, every = self._seen.get(name, 0), self._every.get(name, 1)
        if seen % every == 0:
            curve = self.curves.setdefault(name, [])
            curve.append([step, float(value)])
            if len(curve) > _MOST:
                del curve[1::2]
                self._every[name] = 2 * every
        self._seen[name] = seen + 1
