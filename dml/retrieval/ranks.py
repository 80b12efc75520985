"""Exact ranks of every query's positives, counted in tiles of the distance matrix: all rank metrics follow from them.

No list of neighbours is made. The rank of a positive is the number of gallery items that come before it: the nearer
ones, and of equally near ones those with a lower index. Distances are Euclidean, in float64 from differences of the
embeddings as they came. A float32 product of a tile of queries and a tile of the gallery decides nearly all
comparisons; what its rounding (bounded by dimension and norms) leaves open is decided by a float64 product where
it is much, and by the differences in the end. Where items are searched among each other, a tile serves its rows and its
columns.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dml.products import full_float32
from dml.retrieval.rows import Ranks, Rows, ranks_of_merged, ranks_of_rows
from dml.retrieval.sides import Layout, Place, Side, equal_rows, find_clusters
from dml.retrieval.tiles import Tile

_TILE = {"cpu": 1280, "cuda": 8192}  # rows and columns; on a CPU a tile and its comparisons stay in the cache
_WORKERS = 16  # tiles at the same time, at most; each has some buffers of its size
_PAIRS = 2**20  # pairs of a query and a positive that are held at a time: bounds the memory whatever the classes
_LEAST = 128  # rows of a tile at least
_FEWER = 4  # how many times fewer rows than items there have to be to prefer that to exact products
_EQUAL = 4  # equal rows that an item has in the mean from which they are counted as one row


def positive_counts(
    query_labels: np.ndarray, gallery_labels: np.ndarray | None = None, own_index: np.ndarray | None = None
) -> np.ndarray:
    """How many positives each query [Q] has in the gallery, without itself there; without one, among the others."""
    classes, sizes = np.unique(query_labels if gallery_labels is None else gallery_labels, return_counts=True)
    place = np.searchsorted(classes, query_labels).clip(max=len(classes) - 1)
    counts = np.where(classes[place] == query_labels, sizes[place], 0)
    if gallery_labels is None:
        return counts - 1
    return counts if own_index is None else counts - ((own_index >= 0) & (gallery_labels[own_index] == query_labels))


@torch.inference_mode()
def positive_ranks(
    queries: Tensor,
    query_labels: np.ndarray,
    gallery: Tensor | None = None,
    gallery_labels: np.ndarray | None = None,
    own_index: np.ndarray | None = None,
    **given: Any,
) -> Ranks:
    """Where each query's positives stand in the full ranking of the gallery, exactly: all blocks of `rank_blocks`."""
    counts = np.zeros(len(queries), dtype=np.int64)
    query, ranks = [], []
    for rows, found in rank_blocks(queries, query_labels, gallery, gallery_labels, own_index, **given):
        counts[rows] = found.counts
        query.append(np.repeat(rows, found.counts))
        ranks.append(found.ranks)
    return Ranks(np.concatenate(ranks)[np.argsort(np.concatenate(query), kind="stable")], counts)


def rank_blocks(
    queries: Tensor,
    query_labels: np.ndarray,
    gallery: Tensor | None = None,
    gallery_labels: np.ndarray | None = None,
    own_index: np.ndarray | None = None,
    *,
    nearest_only: bool = False,
    share: tuple[int, int] = (0, 1),
    add_up: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
) -> Iterator[tuple[np.ndarray, Ranks]]:
    """Some queries [q] at a time, each once, with the ranks of their positives.

    O(Q N D) time (half of it without a gallery, if all ranks fit one block) and O((Q + N) D) memory.

    Args:
        queries: [Q, D] float32, finite. query_labels: [Q].
        gallery: [N, D]; None: each query is searched among the others, itself left out by its index.
        gallery_labels: [N].
        own_index: [Q] where each query is in the gallery, which it does not find; -1: nowhere. None: nowhere for all.
        nearest_only: count for the nearest positive of each query only, which is all that Recall@K needs.
        share: (r, n): this process counts part r of n of the tiles,
        add_up: and this adds up the counts of all processes, of a block at a time.
    """
    among_others = gallery is None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels, own_index = queries, query_labels, np.arange(len(queries))
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}")
    with torch.inference_mode():
        layout, q, g = _sides(queries, query_labels, gallery, gallery_labels, own_index, among_others)
    device = gallery.device.type
    step = _TILE.get(device, 1024)
    workers = min(torch.get_num_threads(), _WORKERS) if device == "cpu" else 1
    columns = [slice(at, min(at + step, len(g))) for at in range(0, len(g), step)]
    blocks = list(_blocks(q, step, nearest_only))
    symmetric = q is g and blocks == [columns]

    @torch.inference_mode()
    def rows_of(items: slice) -> Rows:
        return Rows(q, g, layout, items, nearest_only)

    @torch.inference_mode()
    def count(r: int, c: int) -> None:
        far = Tile(q, g, layout, rows[r].items, columns[c])
        for tile in (far, *([] if far.same is None else [Tile(q, g, layout, rows[r].items, columns[c], near=True)])):
            rows[r].count(tile)
            if symmetric and c > r:
                rows[c].count(tile.turned())

    # Tiles at the same time: much of what is done around a product is too small to be shared out by itself.
    own = functools.partial(torch.set_num_threads, torch.get_num_threads() // workers)
    for block in blocks:
        with full_float32(), ThreadPoolExecutor(workers, initializer=own) as pool:
            rows = list(pool.map(rows_of, block))
            tiles = [(r, c) for r in range(len(rows)) for c in range(r if symmetric else 0, len(columns))]
            deque(pool.map(count, *zip(*tiles[share[0] :: share[1]], strict=True)), maxlen=0)
        yield (ranks_of_merged if layout.merged else ranks_of_rows)(rows, add_up)


def _sides(
    queries: Tensor,
    query_labels: np.ndarray,
    gallery: Tensor,
    gallery_labels: np.ndarray,
    own_index: np.ndarray | None,
    among_others: bool,
) -> tuple[Layout, Side, Side]:
    """The layout of the gallery, the queries and the gallery; the same side twice where each is what the other is."""
    place = Place.of(queries, gallery)
    same = equal_rows(gallery)
    items = np.bincount(same)
    many = bool((items**2).sum() > (1 + _EQUAL) * len(same))
    if place.whole:  # which settles ties of all kinds, but looks at each item
        many = many and bool(np.count_nonzero(items) * _FEWER <= len(same))
        place.whole = not many
    layout = Layout(gallery_labels, same if many else None)
    g = Side(gallery, layout.rows, place)
    places = layout.place_of(query_labels)
    order = np.argsort(places, kind="stable")
    q = g if among_others and not many else Side(queries, order, place)
    own = np.full(len(queries), -1) if own_index is None else own_index
    q.search(layout, places[order], own[order])
    if not place.whole:
        find_clusters(q, g)
    return layout, q, g


def _blocks(q: Side, step: int, nearest_only: bool) -> Iterator[list[slice]]:
    """The rows of tiles, as many at a time as there may be pairs."""
    width = (q.last - q.first).numpy(force=True) + 1
    block: list[slice] = []
    held, at = 0, 0
    while at < len(q):
        size = step
        while size > _LEAST and width[at : at + size].max() * min(size, len(q) - at) > _PAIRS and not nearest_only:
            size //= 2
        items = slice(at, min(at + size, len(q)))
        pairs = int(width[items].max()) * (items.stop - at)
        if block and held + pairs > _PAIRS and not nearest_only:
            yield block
            block, held = [], 0
        block.append(items)
        held, at = held + pairs, items.stop
    yield block
