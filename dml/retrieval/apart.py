"""Images of one group (a camera, a session) do not find each other: each group's queries are searched in the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dml.retrieval.rows import Ranks

Blocks = Iterator[tuple[np.ndarray, Ranks]]


class Part(NamedTuple):
    """Some queries, and what they are searched in.

    Attributes:
        queries, rest: indices of the queries and of the gallery; None: all of them.
        own: where in that rest each of these queries is; -1: nowhere; None: nowhere for all.
    """

    queries: np.ndarray | None
    rest: np.ndarray | None
    own: np.ndarray | None


def parts_of(groups: Any, gallery_groups: Any, queries: int, images: int, own: np.ndarray | None) -> list[Part]:
    """The queries of each group with the images of all others.

    Args:
        groups: [Q] of the queries. gallery_groups: [N] of the images.
        queries, images: Q and N.
        own: [Q] where in the gallery each query is; -1: nowhere. None: nowhere for all.

    Raises:
        ValueError: not each has a group, or the queries of one have nothing to be searched in.
    """
    sides = [(np.asarray(groups), queries, "groups")]
    sides += [(np.asarray(gallery_groups), images, "gallery_groups")]
    for values, count, what in sides:
        if values.shape != (count,):
            raise ValueError(f"evaluation takes {what} [{count}], one for each embedding, not {list(values.shape)}")
    (asked, *_), (there, *_) = sides
    found = []
    for group in np.unique(asked):
        mine, rest = np.flatnonzero(asked == group), np.flatnonzero(there != group)
        if not len(rest):
            raise ValueError(f"all images that are searched are of the group {group}: its queries find nothing")
        place = np.full(images, -1)
        place[rest] = np.arange(len(rest))
        at = None if own is None else np.where(own[mine] >= 0, place[own[mine]], -1)
        found.append(Part(mine, rest, at if at is not None and (at >= 0).any() else None))
    return found


def take(values: Any, index: np.ndarray | None) -> Any:
    """Rows of a tensor or an array; None: all of them."""
    if index is None:
        return values
    return values[torch.from_numpy(index).to(values.device) if isinstance(values, Tensor) else index]


def within(parts: Iterable[Part], search: Callable[[Part], Blocks]) -> Blocks:
    """What a search of each part yields, its queries by their indices among all."""
    for part in parts:
        for some, ranks in search(part):
            yield (some if part.queries is None else part.queries[some]), ranks


def searched_apart(
    search: Callable[..., Blocks],
    parts: Sequence[Part] | None,
    x: Tensor,
    y: np.ndarray,
    g: Tensor | None,
    g_labels: np.ndarray | None,
    own: np.ndarray | None,
    **given: Any,
) -> Blocks:
    """A search of queries x [Q, D] with labels y in a gallery (None: among the others), or of each part by itself."""
    if parts is None:
        return search(x, y, g, g_labels, own, **given)
    pool, pool_labels = (x, y) if g is None or g_labels is None else (g, g_labels)

    def of_part(part: Part) -> Blocks:
        asked, there = (
            (take(x, part.queries), take(y, part.queries)),
            (take(pool, part.rest), take(pool_labels, part.rest)),
        )
        return search(*asked, *there, part.own, **given)

    return within(parts, of_part)
