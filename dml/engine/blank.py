"""Images that are of one colour or nearly black are told: they were read wrongly more often than they are so."""

import logging
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dml.engine.gather import add_over_ranks
from dml.printable import printable
from dml.words import counted

log = logging.getLogger(__name__)


class BlankImages(pl.Callback):
    """Warns once of each part in which such images are met: after a validation, or at the end."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what has been met."""
        self._look(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what has been met."""
        self._look(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what has been met."""
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        for part, dataset in trainer.datamodule.parts.items():  # type: ignore[attr-defined]
            looks = getattr(dataset, "looks", None)
            if part in self._told or looks is None:
                continue
            seen = np.stack([looks.numpy() > 0, looks.numpy() > 1]).astype(np.int64)
            met, blank = add_over_ranks(seen, trainer.strategy.root_device) > 0  # every rank meets a share of them
            if blank.any():
                self._told.add(part)
                self._tell(part, dataset.records.images, met, blank)

    @rank_zero_only
    def _tell(self, part: str, images: Any, met: np.ndarray, blank: np.ndarray) -> None:
        first = int(np.flatnonzero(blank)[0])
        name = f"number {first}" if isinstance(images, np.ndarray) else images[first]
        log.warning(
            printable(
                f"{part}: of one colour or nearly black: {blank.sum():,} of the {counted(int(met.sum()), 'image')} met "
                f"so far (the first: {name}). Look whether they are read right: docs/troubleshooting.md says what is "
                "done with more than 8 bits and with transparent pixels"
            )
        )
