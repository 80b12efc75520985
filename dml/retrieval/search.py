"""Exact nearest neighbours and exact ranks, with one rule for ties: the lower gallery index comes first.

Distances are Euclidean. A query that is itself in the gallery is never its own neighbour; it is excluded by its
index, not by being the first hit, so duplicates do not fool it.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

_SPARE = 8  # neighbours asked for beyond k, so that a near tie at rank k seldom needs a second look
_BLOCK_ELEMENTS = 1 << 22  # distances held at a time: bounds the memory at any number of images


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, own_index: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery items of every query, by FAISS's flat index (on the GPU when FAISS finds one).

    FAISS proposes in float32; the proposals are ranked by their distances in float64, ties by lower index. Where
    float32 rounding could hide a nearer item, a float64 matrix product proposes instead; where even that cannot tell
    (exact ties beyond the proposals), the query is compared with the whole gallery.

    Args:
        queries: [Q, D].
        gallery: [N, D].
        k: number of neighbours, at most N (N - 1 with own_index).
        own_index: [Q] index of each query in the gallery, which is left out; None: queries are not in it.

    Returns:
        Gallery indices [Q, k], nearest first, and their distances [Q, k], float64.

    Raises:
        ValueError: k is larger than what there is to find, or queries and gallery differ in D.
    """
    available = len(gallery) - (own_index is not None)
    if not 0 < k <= available:
        raise ValueError(f"evaluator.ks asks for {k} neighbours, but a query can have 1 to {available}")
    q, g = _centred(queries, gallery)
    index: Any = faiss.IndexFlatL2(g.shape[1])
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(g.astype(np.float32))
    wanted = min(k + (own_index is not None) + _SPARE, len(g))
    found = np.empty((len(q), k), dtype=np.int64)
    distances = np.empty((len(q), k), dtype=np.float64)

    def rank(rows: np.ndarray, proposed: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Rank the proposals [r, p] of some queries; whatever is not proposed has at least squared distance `reach`.

        Returns the queries for which that does not settle the first k.
        """
        # Of the embeddings as they came: moving them to the centre would round equal distances apart.
        difference = gallery[proposed].astype(np.float64) - queries[rows, None]
        squared = np.einsum("qpd,qpd->qp", difference, difference)
        if own_index is not None:
            squared[proposed == own_index[rows, None]] = np.inf
        order = np.lexsort((proposed, squared))[:, :k]
        squared = np.take_along_axis(squared, order, axis=1)
        found[rows], distances[rows] = np.take_along_axis(proposed, order, axis=1), np.sqrt(squared)
        return rows[~(squared[:, -1] < reach)] if proposed.shape[1] < len(g) else rows[:0]

    unsettled = []
    single, double = _rounding(q, g, np.float32), _rounding(q, g, np.float64)
    for rows in _blocks(np.arange(len(q)), wanted * g.shape[1]):
        squared, proposed = index.search(q[rows].astype(np.float32), wanted)
        unsettled.append(rank(rows, proposed, squared[:, -1] - single))
    ties = []
    for rows in _blocks(np.concatenate(unsettled), max(len(g), wanted * g.shape[1])):
        squared = _squared(q[rows], g)
        proposed = np.argpartition(squared, wanted - 1, axis=1)[:, :wanted]
        reach = np.take_along_axis(squared, proposed, axis=1).max(axis=1)
        ties.append(rank(rows, proposed, reach - double))
    for row in np.concatenate([*ties, np.empty(0, dtype=np.int64)]):
        rank(np.array([row]), np.arange(len(g))[None], np.array([np.inf]))
    return found, distances


def positive_ranks(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    own_index: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Where each query's positives stand in the full ranking of the gallery.

    Counts, for every positive, the gallery items that come before it, in blocks of queries: O(Q N) time and a bounded
    number of distances at a time, in float64. Queries with a tie, or something that rounding cannot tell from one,
    are compared with the gallery once more, difference by difference.

    Args:
        queries: [Q, D]. query_labels: [Q].
        gallery: [N, D]. gallery_labels: [N].
        own_index: [Q] index of each query in the gallery, which is left out.

    Returns:
        For each query, the ranks of its positives, ascending, from 0; empty if it has none.
    """
    q, g = _centred(queries, gallery)
    slack = _rounding(q, g, np.float64)
    members = _members(gallery_labels)
    nothing = np.empty(0, dtype=np.int64)
    ranks: list[np.ndarray] = []
    for rows in _blocks(np.arange(len(q)), len(g)):
        squared = _squared(q[rows], g)
        if own_index is not None:
            squared[np.arange(len(rows)), own_index[rows]] = np.inf
        for query, distance in zip(rows.tolist(), squared, strict=True):
            positives = members.get(query_labels[query], nothing)
            if own_index is not None:
                positives = positives[positives != own_index[query]]
            ranks.append(_ranks(distance, positives, slack))
            if len(positives) and ranks[-1].size == 0:
                difference = gallery.astype(np.float64) - queries[query]
                distance = np.einsum("nd,nd->n", difference, difference)
                if own_index is not None:
                    distance[own_index[query]] = np.inf
                place = np.empty(len(g), dtype=np.int64)
                place[np.argsort(distance, kind="stable")] = np.arange(len(g))
                ranks[-1] = np.sort(place[positives])
    return ranks


def _ranks(distance: np.ndarray, positives: np.ndarray, slack: float) -> np.ndarray:
    """Ranks of the positives in a row [N] of distances; empty if another item is within slack of one of them."""
    edges = np.sort(distance[positives])
    # How many items lie below each positive, counted twice: a little nearer and a little farther than it.
    below = np.searchsorted(edges - slack, distance, side="right")
    upto = np.searchsorted(edges + slack, distance, side="left")
    nearer = np.bincount(below, minlength=len(edges) + 1).cumsum()[: len(edges)]
    not_farther = np.bincount(upto, minlength=len(edges) + 1).cumsum()[: len(edges)]
    return nearer if (not_farther - nearer == 1).all() else nearer[:0]


def _centred(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, moved so that the gallery's centre is the origin: distances stay, products lose fewer digits."""
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}")
    centre = gallery.mean(axis=0, dtype=np.float64)
    return queries - centre, gallery - centre


def _rounding(q: np.ndarray, g: np.ndarray, dtype: type) -> float:
    """Bound on the error of |q|^2 + |g|^2 - 2 q g in the given precision."""
    largest = np.einsum("nd,nd->n", q, q).max() + np.einsum("nd,nd->n", g, g).max()
    return float(2 * (q.shape[1] + 4) * np.finfo(dtype).eps * largest)


def _squared(q: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Squared distances [q, N] by one matrix product."""
    squared = q @ (-2 * g).T
    squared += np.einsum("nd,nd->n", q, q)[:, None]
    squared += np.einsum("nd,nd->n", g, g)
    return squared


def _blocks(rows: np.ndarray, elements: int) -> Iterator[np.ndarray]:
    size = max(1, _BLOCK_ELEMENTS // elements)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _members(labels: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    return dict(zip(classes.tolist(), np.split(order, starts[1:]), strict=True))
