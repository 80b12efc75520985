"""The folder of a sweep. Imports Hydra only: a mistake in a sweep is found before torch is loaded."""

import hashlib
import re
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write


class SweepNamedByCommand(Callback):
    """Name the folder of a sweep after its command, so that the same command finds it again.

    An hydra.sweep.dir that the user gives stays.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fill in hydra.sweep.dir before the sweeper reads it."""
        if config.hydra.sweep.dir:
            return
        overrides = list(config.hydra.overrides.task)
        command = " ".join(overrides)
        # What is swept comes first, as the name is cut. No character that an override such as ckpt_path=FILE would need
        # quotes for.
        swept_first = " ".join(sorted(overrides, key=lambda override: "," not in override))
        readable = re.sub(r"[^\w.-]+", "_", swept_first.replace("=", "-"))[:80].strip("_") or "defaults"
        name = f"multirun/{readable}-{hashlib.sha256(command.encode()).hexdigest()[:8]}"
        with read_write(config.hydra):
            config.hydra.sweep.dir = name
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{name}'")  # each job composes its config anew
