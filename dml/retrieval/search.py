"""Exact nearest neighbours and exact ranks, with one rule for ties: the lower gallery index comes first.

Distances are Euclidean. A query that is itself in the gallery is never its own neighbour; it is excluded by its
index, not by being the first hit, so duplicates do not fool it.
"""

from typing import Any

import faiss
import numpy as np
import torch

_SPARE = 8  # neighbours asked for beyond k: float32 search may misplace near ties, float64 puts them right
_BLOCK_ELEMENTS = 1 << 22  # distances held at a time: bounds the memory at any number of images


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, own_index: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery items of every query, by FAISS's flat index (on the GPU when FAISS finds one).

    FAISS proposes in float32; the proposals are ranked by distances in float64, ties by lower index. The rare query
    whose ties reach beyond the proposals is ranked against the whole gallery.

    Args:
        queries: [Q, D].
        gallery: [N, D].
        k: number of neighbours, at most N (N - 1 with own_index).
        own_index: [Q] index of each query in the gallery, which is left out; None: queries are not in it.

    Returns:
        Gallery indices [Q, k], nearest first, and their distances [Q, k], float64.

    Raises:
        ValueError: k is larger than what there is to find.
    """
    queries, gallery = _as_float32(queries), _as_float32(gallery)
    available = len(gallery) - (own_index is not None)
    if not 0 < k <= available:
        raise ValueError(f"evaluator.ks asks for {k} neighbours, but a query can have 1 to {available}")
    index: Any = faiss.IndexFlatL2(gallery.shape[1])
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(gallery)
    wanted = min(k + (own_index is not None) + _SPARE, len(gallery))
    found = np.empty((len(queries), k), dtype=np.int64)
    distances = np.empty((len(queries), k), dtype=np.float64)
    block = max(1, _BLOCK_ELEMENTS // (wanted * gallery.shape[1]))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        own = None if own_index is None else own_index[rows]
        proposed = index.search(queries[rows], wanted)[1]
        found[rows], distances[rows], complete = _rank(queries[rows], gallery, proposed, own, k)
        for row in start + np.flatnonzero(~complete):
            everything = np.arange(len(gallery))[None]
            own_row = None if own_index is None else own_index[row : row + 1]
            one = slice(row, row + 1)
            found[one], distances[one], _ = _rank(queries[one], gallery, everything, own_row, k)
    return found, distances


def _rank(
    queries: np.ndarray, gallery: np.ndarray, proposed: np.ndarray, own: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first k of the proposals [q, p], their distances, and whether no equally near item can be missing."""
    difference = gallery[proposed].astype(np.float64) - queries[:, None]
    distance = np.sqrt(np.einsum("qpd,qpd->qp", difference, difference))
    farthest = distance.max(axis=1)  # whatever was not proposed is at least this far, up to float32's rounding
    if own is not None:
        distance[proposed == own[:, None]] = np.inf
    order = np.lexsort((proposed, distance))[:, :k]
    distance = np.take_along_axis(distance, order, axis=1)
    complete = (distance[:, -1] < farthest) | (proposed.shape[1] == len(gallery))
    return np.take_along_axis(proposed, order, axis=1), distance, complete


def positive_ranks(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    own_index: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Where each query's positives stand in the full ranking of the gallery.

    Counts, for every positive, the gallery items that come before it, in blocks of queries: O(Q N) time and a
    bounded number of distances at a time. Float64; distances equal to 1e-11 of the largest norm are ties.

    Args:
        queries: [Q, D]. query_labels: [Q].
        gallery: [N, D]. gallery_labels: [N].
        own_index: [Q] index of each query in the gallery, which is left out.

    Returns:
        For each query, the ranks of its positives, ascending, from 0; empty if it has none.
    """
    # Distances do not change when everything moves: the centre of the gallery at the origin loses the least digits.
    centre = torch.from_numpy(_as_float32(gallery)).double().mean(dim=0)
    g = torch.from_numpy(_as_float32(gallery)).double() - centre
    q = torch.from_numpy(_as_float32(queries)).double() - centre
    g_square, q_square = g.square().sum(dim=1), q.square().sum(dim=1)
    grid = max(float(g_square.max()), float(q_square.max()), 1e-300) * 1e-11
    n = len(g)
    members = _members(gallery_labels)
    ranks: list[np.ndarray] = []
    block = max(1, _BLOCK_ELEMENTS // n)
    positions = torch.arange(n)
    for start in range(0, len(q), block):
        rows = slice(start, start + block)
        squared = q_square[rows, None] + g_square - 2 * q[rows] @ g.T
        # One integer orders by distance, then by index: at most 4e11 * N, far below 2^63.
        key = (squared.clamp_min_(0) / grid).round_().long() * n + positions
        if own_index is not None:
            own = torch.from_numpy(own_index[rows])
            key[torch.arange(len(own)), own] = torch.iinfo(torch.int64).max
        for row, label in zip(key, query_labels[rows].tolist(), strict=True):
            positive = torch.from_numpy(members.get(label, np.empty(0, dtype=np.int64)))
            sorted_keys = row[positive].sort().values
            if own_index is not None and len(sorted_keys):
                sorted_keys = sorted_keys[:-1]  # the query itself, sent to the end above
            # Number of sorted positives at or before each item -> how many items come before each positive.
            before = torch.bincount(torch.searchsorted(sorted_keys, row, right=True), minlength=len(sorted_keys) + 1)
            ranks.append(before.cumsum(0)[: len(sorted_keys)].numpy())
    return ranks


def _members(labels: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    return dict(zip(classes.tolist(), np.split(order, starts[1:]), strict=True))


def _as_float32(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=np.float32)
