"""What a config that somebody else wrote may name: plain data, and parts that make networks and read images."""

import inspect
import pydoc
import typing
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler

from dml.app.schema import shown
from dml.data.dataset import Source

_PACKAGES = ("dml", "torch", "torchvision", "timm", "pytorch_lightning")
_KINDS = (nn.Module, Optimizer, LRScheduler, Sampler, Source)


def distrust(config: Any, said: str) -> None:
    """Refuse a config that could run code, read the environment, or change how it is composed.

    A `_target_` may be a class of dml, a class of another of the five packages that is a network, an optimiser, a
    schedule or a sampler, or a function of dml that says that it returns one or a data source. No other key of Hydra's
    is allowed, nor an interpolation: a checkpoint's config was resolved when it was written.

    Args:
        config: as it was read.
        said: where from, for errors.

    Raises:
        ValueError: the config is not like that; one line a problem, each naming a key.
    """
    try:
        problems = list(_problems(config, ""))
    except RecursionError:
        problems = ["its config holds itself"]
    if problems:
        lines = [f"{said}: {problem}" for problem in problems]
        raise ValueError("\n".join([*lines, "If you know who wrote it and want it all the same: trust=true"]))


def _problems(node: Any, key: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str):
                yield f"{inner} is no text, as keys are"
            elif name == "_target_" and not is_harmless(value):
                yield f"{inner}={shown(value)} is none of {', '.join(_PACKAGES)}'s own parts, and could run any code"
            elif name != "_target_" and (name.startswith("_") or name == "defaults"):
                yield f"{inner} is a key by which Hydra could be told to do anything"
            else:
                yield from _problems(value, inner)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _problems(value, f"{key}.{i}")
    elif isinstance(node, str):
        if "${" in node:
            yield f"{key}={shown(node)} is an interpolation, which could read the environment"
    elif not isinstance(node, int | float | None):
        yield f"{key} is a {type(node).__name__}, no plain data"


def is_harmless(target: Any) -> bool:
    """Whether a `_target_` is a part as `distrust` describes it. Imports modules of the five packages, at most."""
    if not isinstance(target, str):
        return False
    parts = target.split(".")
    if parts[0] not in _PACKAGES or any(part.startswith("_") for part in parts):
        return False
    try:
        found = pydoc.locate(target)
    except Exception:  # whatever an import meets
        return False
    home = str(getattr(found, "__module__", "")).split(".")[0]  # torch.os.system is none of torch's
    if home not in _PACKAGES:
        return False
    if isinstance(found, type):
        return home == "dml" or issubclass(found, _KINDS)
    if home != "dml" or not inspect.isfunction(found):
        return False
    returned = typing.get_type_hints(found).get("return")
    return isinstance(returned, type) and issubclass(returned, _KINDS)
