"""Which classes, or images of each class, become a validation part."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

TWO_CLASSES = "it needs two classes with two images each, as in one class every neighbour is a positive"
WHOLE = f"classes of one folder stay together, and {TWO_CLASSES}"


def shuffled(wholes: Sequence[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The classes [C] in random order, those of a whole side by side; for 0 .. C where the whole at that place ends."""
    names, members = np.unique(wholes, return_inverse=True)
    if len(names) in (1, len(wholes)):
        classes = rng.permutation(len(wholes))
        return classes, np.arange(len(classes) + 1)
    parts = [np.flatnonzero(members == whole) for whole in rng.permutation(len(names))]
    edges = np.cumsum([0, *map(len, parts)])
    return np.concatenate(parts), edges[np.searchsorted(edges, np.arange(edges[-1] + 1))]


def useful_next(classes: np.ndarray, wanted: int, useful: np.ndarray) -> np.ndarray:
    """The classes in their order, but after the first `wanted` those with two images come before those with one.

    So a part that has to grow takes no class of one image with it, which only the others could use.
    """
    rest = classes[wanted:]
    return np.concatenate([classes[:wanted], rest[useful[rest]], rest[~useful[rest]]])


def enough(useful: np.ndarray, least: int) -> int:
    """How many classes from the first on are `least` at least and hold two useful ones: with two images each."""
    second = np.flatnonzero(useful)[1:2]
    return max(least, int(second[0]) + 1) if len(second) else len(useful)


def can_train(useful: np.ndarray) -> bool:
    """Whether two classes are left, of which one has two images."""
    return len(useful) >= 2 and bool(useful.any())


def check_folds(useful: np.ndarray, folds: int, ends: np.ndarray) -> None:
    """Refuse a number of folds of which one is too small: all of them are wanted, for their mean."""

    def possible(folds: int) -> bool:
        edges = [ends[round(i / folds * len(useful))] for i in range(folds + 1)]
        parts = [np.arange(a, b) for a, b in pairwise(edges)]
        return all(useful[part].sum() >= 2 and can_train(np.delete(useful, part)) for part in parts)

    most = useful.sum() // 2
    if folds > most or not possible(folds):
        fewer = next((number for number in range(min(folds, most), 1, -1) if possible(number)), None)
        raise ValueError(
            f"data.folds={folds} of {len(useful)} training classes is not possible: a part would be too small to "
            f"validate with ({TWO_CLASSES}). Give {f'data.folds={fewer}' if fewer else 'more training classes'}"
        )


def part_of_each_class(labels: np.ndarray, start: float, stop: float, rng: np.random.Generator) -> np.ndarray:
    """Mask [N] of the images from share `start` to share `stop` of every class, shuffled."""
    part = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        part[members[round(start * len(members)) : round(stop * len(members))]] = True
    return part
