"""No secret in a config: configs are written into run folders, checkpoints and W&B. Imports Hydra only."""

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

_NAME = re.compile(r"(?i)\b((\w+_)?api_key|password|secret|token)$")
_SET = re.compile(_NAME.pattern[:-1] + r"\s*[=:]")  # in an override
_KEPT = ("WANDB_API_KEY", "HF_TOKEN")  # variables of the environment
_INSTEAD = "set WANDB_API_KEY in the environment, or run `wandb login`"


def secrets_in(node: Any, key: str = "") -> Iterator[str]:
    """A line for every value in a config that has the name or the value of a secret; never the secret itself."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from secrets_in(value, f"{key}.{name}" if key else str(name))
    elif (text := str(node)) and node is not None and not isinstance(node, bool):
        values = [value for kept in _KEPT if len(value := os.environ.get(kept, "")) >= 8]
        named = _NAME.search(key.rpartition(".")[2])
        set_there = key.startswith("hydra.overrides.") and _SET.search(text)
        if named or set_there or any(value in text for value in values):
            name = text.partition("=")[0].lstrip("+") if set_there else key
            yield f"{name} holds a secret, and configs are written into files: {_INSTEAD}"


class NoSecrets(Callback):
    """Refuse a config with a secret before Hydra writes it into the output folder. Exits with one line."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the config of a run."""
        for line in secrets_in(OmegaConf.to_container(config)):
            sys.exit(line)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the config of a sweep, and at what it sweeps over."""
        self.on_run_start(config)
