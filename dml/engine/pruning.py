"""A run that a search gives up after a validation, as it is worse than others were at that step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dml.whole_file import write_whole


class PrunedError(Exception):
    """A search has given up this run.

    Args:
        step: of the validation that decided.
        value: of the metric there.
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step, self.value = step, value


class Pruning(pl.Callback):
    """Writes down the metric of each validation, and ends the run before the next step if it is pruned.

    By then all that belongs to the validation is done and last.ckpt is written, so the run can go on if the search
    comes to another decision. A validation after the last step prunes nothing.

    Args:
        file: of the validations, as JSON.
        monitor: the metric, the same on all processes.
        validated: step -> metric of the run before it was resumed.
        pruned_at: of step -> metric, the step at which it is pruned, or None.
    """

    def __init__(
        self,
        file: Path,
        *,
        monitor: str,
        validated: dict[int, float],
        pruned_at: Callable[[dict[int, float]], int | None],
    ) -> None:
        self._file, self._monitor, self._validated, self._pruned_at = file, monitor, validated, pruned_at
        self._due = bool(validated)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the metric down, before last.ckpt is written."""
        if trainer.sanity_checking:
            return
        self._validated[trainer.global_step] = float(trainer.callback_metrics[self._monitor])
        rank_zero_only(write_whole)(self._file, json.dumps(self._validated).encode())
        self._due = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the run if it is pruned.

        Raises:
            PrunedError: it is.
        """
        if self._due:
            self._due = False
            step = self._pruned_at(self._validated)
            if step is not None:
                raise PrunedError(step, self._validated[step])
