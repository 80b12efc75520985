"""Exact nearest neighbours by FAISS, with one rule for ties: the lower gallery index comes first.

Distances are Euclidean. A query that is itself in the gallery is never its own neighbour; it is excluded by its
index, not by being the first hit, so duplicates do not fool it.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch

from dml.retrieval.ranks import positive_counts, positive_ranks
from dml.retrieval.rows import Ranks
from dml.retrieval.tiles import squared_distances

_SPARE = 8  # neighbours asked for beyond k, so that a near tie at rank k seldom needs a second look
_BLOCK_ELEMENTS = 1 << 22  # distances held at a time: bounds the memory at any number of images


class Search:
    """The k nearest items of a gallery [N, D] for any queries, by FAISS's flat index (on the GPU when FAISS finds one).

    FAISS proposes in float32; the proposals are ranked by their distances in float64, ties by lower index. Where
    float32 rounding could hide a nearer item, a float64 matrix product proposes instead; where even that cannot tell
    (exact ties beyond the proposals), the query is compared with the whole gallery.

    Raises:
        ValueError: the gallery is not finite.
    """

    def __init__(self, gallery: np.ndarray) -> None:
        _finite(gallery)
        # Around the centre of the gallery distances are the same and products lose fewer digits.
        self.centre = gallery.mean(axis=0, dtype=np.float64)
        self.gallery, self.centred = gallery, gallery - self.centre
        # Of lengths of at most 1, so that no square overflows or vanishes in float32.
        self.scale = float(np.linalg.norm(self.centred, axis=1).max()) or 1.0
        self.centred /= self.scale
        self.index: Any = faiss.IndexFlatL2(gallery.shape[1])
        if faiss.get_num_gpus():
            self.index = faiss.index_cpu_to_all_gpus(self.index)
        self.index.add(self.centred.astype(np.float32))

    def __call__(
        self, queries: np.ndarray, k: int, own_index: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gallery indices [Q, k], nearest first, and their distances [Q, k], float64; see propose."""
        found, distances, _ = self.propose(queries, k, own_index, settle=True)
        return found, distances

    def propose(
        self, queries: np.ndarray, k: int, own_index: np.ndarray | None = None, *, settle: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same, and the queries for which FAISS's proposals do not settle what the first k are.

        Args:
            queries: [Q, D].
            k: number of neighbours, at most N (N - 1 where a query is in the gallery).
            own_index: [Q] index of each query in the gallery, which is left out; -1 or None: it is not in it.
            settle: look again until none is left.

        Raises:
            ValueError: k is larger than what there is to find, queries are not finite, or of another D.
        """
        _finite(queries)
        gallery, g = self.gallery, self.centred
        inside = own_index is not None and bool((own_index >= 0).any())
        available = len(g) - inside
        if not 0 < k <= available:
            raise ValueError(f"evaluator.ks asks for {k} neighbours, but a query can have 1 to {available}")
        if queries.shape[1] != g.shape[1]:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {g.shape[1]}")
        q = (queries - self.centre) / self.scale
        wanted = min(k + inside + _SPARE, len(g))
        found = np.empty((len(q), k), dtype=np.int64)
        distances = np.empty((len(q), k), dtype=np.float64)

        def rank(rows: np.ndarray, proposed: np.ndarray, reach: np.ndarray) -> np.ndarray:
            """Rank the proposals [r, p] of some queries; others are at least `reach` away, squared and scaled.

            Returns the queries for which that does not settle the first k.
            """
            # Of the embeddings as they came: moving them to the centre would round equal distances apart.
            pairs = torch.from_numpy(gallery[proposed]), torch.from_numpy(queries[rows, None])
            squared = squared_distances(*pairs).numpy()
            if own_index is not None:
                squared[proposed == own_index[rows, None]] = np.inf
            order = np.lexsort((proposed, squared))[:, :k]
            squared = np.take_along_axis(squared, order, axis=1)
            found[rows], distances[rows] = np.take_along_axis(proposed, order, axis=1), np.sqrt(squared)
            return rows[~(squared[:, -1] < reach * self.scale**2)] if proposed.shape[1] < len(g) else rows[:0]

        unsettled = [np.empty(0, dtype=np.int64)]
        single, double = _rounding(q, g, np.float32), _rounding(q, g, np.float64)
        for rows in _blocks(np.arange(len(q)), wanted * g.shape[1]):
            squared, proposed = self.index.search(q[rows].astype(np.float32), wanted)
            unsettled.append(rank(rows, proposed, squared[:, -1].astype(np.float64) - single))
        if not settle:
            return found, distances, np.concatenate(unsettled)
        ties = []
        for rows in _blocks(np.concatenate(unsettled), max(len(g), wanted * g.shape[1])):
            squared = _squared(q[rows], g)
            proposed = np.argpartition(squared, wanted - 1, axis=1)[:, :wanted]
            reach = np.take_along_axis(squared, proposed, axis=1).max(axis=1)
            ties.append(rank(rows, proposed, reach - double))
        for row in np.concatenate([*ties, np.empty(0, dtype=np.int64)]):
            rank(np.array([row]), np.arange(len(g))[None], np.array([np.inf]))
        return found, distances, np.empty(0, dtype=np.int64)


def searched_ranks(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    own_index: np.ndarray | None = None,
    *,
    depth: int | None = None,
) -> Ranks:
    """What ranks.positive_ranks counts, looked up in lists of neighbours instead; see searched_blocks."""
    blocks = list(searched_blocks(queries, query_labels, gallery, gallery_labels, own_index, depth=depth))
    return Ranks(*(np.concatenate([getattr(ranks, name) for _, ranks in blocks]) for name in ("ranks", "counts")))


def searched_blocks(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    own_index: np.ndarray | None = None,
    *,
    depth: int | None = None,
) -> Iterator[tuple[np.ndarray, Ranks]]:
    """Some queries [q] at a time, in their order, with the ranks of their positives.

    Args:
        queries: [Q, D]. query_labels: [Q].
        gallery: [N, D]; None: each query is searched among the others.
        gallery_labels: [N].
        own_index: [Q] where each query is in the gallery, which it does not find; -1: nowhere. None: nowhere for all.
        depth: how many neighbours to look at, None for all; positives beyond them get rank N.
    """
    counts = positive_counts(query_labels, gallery_labels, own_index)
    own = np.arange(len(queries)) if gallery is None else own_index
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels = queries, query_labels
    available = len(gallery) - (own is not None and bool((own >= 0).any()))
    depth = available if depth is None else min(depth, available)
    search = Search(gallery)
    among = torch.from_numpy(np.ascontiguousarray(gallery, dtype=np.float32))
    # Where some queries are in the gallery and others are not, these may miss their last: it has rank N - 1.
    missed = len(gallery) if depth < available else depth
    for rows in _blocks(np.arange(len(queries)), depth + _SPARE):
        mine = None if own is None else own[rows]
        neighbours, _, unsettled = search.propose(queries[rows], depth, mine)
        hits = gallery_labels[neighbours] == query_labels[rows, None]
        row, rank = hits.nonzero()
        first = counts[rows].cumsum() - counts[rows]
        ranks = np.full(int(counts[rows].sum()), missed)
        ranks[first[row] + (hits.cumsum(axis=1) - 1)[row, rank]] = rank
        if len(unsettled):
            # Equal or nearly equal distances beyond what was proposed, of collapsed embeddings all: sooner counted.
            counted = positive_ranks(
                torch.from_numpy(np.ascontiguousarray(queries[rows[unsettled]], dtype=np.float32)),
                query_labels[rows[unsettled]],
                among,
                gallery_labels,
                None if mine is None else mine[unsettled],
            )
            mask = np.repeat(np.isin(np.arange(len(rows)), unsettled), counts[rows])
            ranks[mask] = np.where(counted.ranks < depth, counted.ranks, missed)
        yield rows, Ranks(ranks, counts[rows])


def _finite(x: np.ndarray) -> None:
    if broken := int((~np.isfinite(x)).any(axis=1).sum()):
        raise ValueError(f"{broken} of {len(x)} embeddings are NaN or infinite")


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
