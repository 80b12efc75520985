"""One batch of a sampler, before images are decoded: a sampler of one's own has what the data module asks of it."""

import numbers
from typing import Any

import numpy as np
from omegaconf import DictConfig

from dml.app.make import make

_ATTRIBUTES = ("epoch", "position")
_METHODS = ("__len__", "__iter__", "set_epoch", "state_dict", "load_state_dict")


def batches_of_an_epoch(cfg: DictConfig, labels: np.ndarray) -> int:
    """Make the sampler as the one process of a run would, and draw a batch.

    Args:
        cfg: composed config.
        labels: [N] of the training images.

    Returns:
        The number of batches that it has in an epoch.

    Raises:
        ValueError: it cannot be made from these labels, or lacks what docs/own_parts.md says.
    """
    sampler = make(cfg.sampler, labels=labels, seed=cfg.seed, rank=0, world_size=1)
    name = type(sampler).__name__
    missing = [key for key in (*_METHODS, *_ATTRIBUTES) if not hasattr(sampler, key)]
    if missing:
        raise ValueError(f"sampler: {name} has no {', '.join(missing)} (docs/own_parts.md says what they are for)")
    count: Any = len(sampler)
    if count < 1:
        raise ValueError(f"sampler: {name} has no batch in an epoch of {len(labels)} images: its batches are too large")
    batch = next(iter(sampler), None)
    if not isinstance(batch, list) or not batch or not all(_is_index(one, len(labels)) for one in batch):
        said = repr(batch) if len(repr(batch)) < 60 else f"{repr(batch)[:57]}..."
        raise ValueError(f"sampler: {name} gives {said}, where a list of indices from 0 to {len(labels) - 1} is needed")
    if sampler.position != 1:
        raise ValueError(
            f"sampler: {name}.position is {sampler.position} after the first batch of an epoch, where 1 is needed: it "
            "counts the batches that were handed out, before it hands one out"
        )
    return count


def _is_index(value: Any, images: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= int(value) < images
