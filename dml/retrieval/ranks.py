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
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from dml.products import full_float32
from dml.retrieval.tiles import Place, Side, Tile, compare, parts, rounding, similarities, squared_distances

_TILE = {"cpu": 1280, "cuda": 8192}  # rows and columns; on a CPU a tile and its comparisons stay in the cache
_WORKERS = 16  # tiles at the same time, at most; each has some buffers of its size
_MANY = 1 / 256  # share of a tile left open by float32 from which a float64 product is faster than differences


@dataclass(frozen=True)
class Ranks:
    """Where the positives of Q queries stand in the ranking of the gallery.

    Attributes:
        ranks: [P] from 0, ascending for each query, one query after the other.
        counts: [Q] how many of them are each query's; 0 for a query without positive.
    """

    ranks: np.ndarray
    counts: np.ndarray


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
    *,
    nearest_only: bool = False,
    share: tuple[int, int] = (0, 1),
    add_up: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
) -> Ranks:
    """Where each query's positives stand in the full ranking of the gallery, exactly.

    O(Q N D) time (half of it without a gallery) and O((Q + N) D + P) memory for P ranks.

    Args:
        queries: [Q, D] float32, finite. query_labels: [Q].
        gallery: [N, D]; None: each query is searched among the others, itself left out by its index.
        gallery_labels: [N].
        own_index: [Q] where each query is in the gallery, which it does not find; -1: nowhere. None: nowhere for all.
        nearest_only: count for the nearest positive of each query only, which is all that Recall@K needs.
        share: (r, n): this process counts part r of n of the tiles,
        add_up: and this adds up the [P] counts of all processes.
    """
    among_others = gallery is None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels = queries, query_labels
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}")
    place = Place.of(queries, gallery)
    g = Side(gallery, gallery_labels, gallery_labels, place)
    q = g if among_others else Side(queries, query_labels, gallery_labels, place)
    q.own = _own(q, g, np.arange(len(g)) if among_others else own_index)
    step = _TILE.get(gallery.device.type, 1024)
    workers = min(torch.get_num_threads(), _WORKERS) if gallery.device.type == "cpu" else 1
    columns = [slice(at, at + step) for at in range(0, len(g), step)]

    @torch.inference_mode()
    def rows_from(at: int) -> _Rows:
        return _Rows(q, g, slice(at, at + step), nearest_only)

    @torch.inference_mode()
    def count(r: int, c: int) -> None:
        tile = Tile(q, g, rows[r].items, columns[c])
        rows[r].count(tile)
        if among_others and c > r:
            rows[c].count(tile.turned())

    # Tiles at the same time: much of what is done around a product is too small to be shared out by itself.
    own = functools.partial(torch.set_num_threads, torch.get_num_threads() // workers)
    with full_float32(), ThreadPoolExecutor(workers, initializer=own) as pool:
        rows = list(pool.map(rows_from, range(0, len(q), step)))
        tiles = [(r, c) for r in range(len(rows)) for c in range(r if among_others else 0, len(columns))]
        deque(pool.map(count, *zip(*tiles[share[0] :: share[1]], strict=True)), maxlen=0)
    before = add_up(np.concatenate([block.before[block.real].numpy(force=True) for block in rows]))
    positives = np.concatenate([block.real.sum(dim=1).numpy(force=True) for block in rows])
    return _in_order(q.index.numpy(force=True), positives, before)


def _own(q: Side, g: Side, own_index: np.ndarray | None) -> Tensor:
    """Where each of the sorted queries is in the sorted gallery [Q], -1: nowhere."""
    if own_index is None:
        return torch.full_like(q.index, -1)
    place = torch.full((len(g) + 1,), -1, device=g.x.device)  # the last for those that are nowhere
    place[g.index] = torch.arange(len(g), device=g.x.device)
    return place[torch.from_numpy(own_index).to(g.x.device)[q.index]]


def _in_order(index: np.ndarray, positives: np.ndarray, before: np.ndarray) -> Ranks:
    """The ranks, of the negatives [P] before each positive of the sorted queries, in the order of the queries."""
    query = np.repeat(index, positives)
    first = np.repeat(positives.cumsum() - positives, positives)
    ranks = before + np.arange(len(before)) - first  # nearer positives come before it too
    counts = np.empty_like(positives)
    counts[index] = positives
    return Ranks(ranks[np.argsort(query, kind="stable")], counts)


class _Rows:
    """Some queries with their positives, and how many negatives come before each."""

    def __init__(self, q: Side, g: Side, items: slice, nearest_only: bool) -> None:
        self.q, self.g, self.items = q, g, slice(items.start, min(items.stop, len(q)))
        first, last, own = q.first[self.items], q.last[self.items], q.own[self.items]
        positives = last - first - ((first <= own) & (own < last)).long()
        width = int((q.last[self.items] - q.first[self.items]).max())
        most = min(int(positives.max()), 1 if nearest_only else width)
        found = [self._positives(rows, width, most) for rows in self._few()]
        self.candidate, self.threshold, self.rounding = (torch.cat(each) for each in zip(*found, strict=True))
        self.real = self.threshold > -torch.inf
        self.before = torch.zeros(self.real.shape, dtype=torch.int64, device=q.x.device)
        self.adding = Lock()  # tiles of the same rows are counted at the same time

    def _few(self) -> Iterator[slice]:
        for at in range(self.items.start, self.items.stop, 128):
            yield slice(at, min(at + 128, self.items.stop))

    def _positives(self, rows: slice, width: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the class of some queries in the gallery, `width` items, the first: positives in their order [rows, most].

        With their similarities [rows, most] and the bound [rows, 1] on the error of those.
        """
        q, g = self.q, self.g
        row = torch.arange(rows.start, rows.stop, device=q.x.device)[:, None]
        first, last = q.first[rows, None], q.last[rows, None]
        candidate = first + torch.arange(width, device=q.x.device)
        positive = (candidate < last) & (candidate != q.own[rows, None])
        if not positive.any():
            candidate = candidate[:, :most]
            return candidate, candidate.double().fill_(-torch.inf), row.double().fill_(0)
        columns = slice(int(first[positive.any(dim=1)].min()), int(last.max()))
        s = similarities(q, g, rows, columns, torch.float64)
        s = s.gather(1, (candidate - columns.start).clamp(0, s.shape[1] - 1)).masked_fill_(~positive, -torch.inf)
        # A class keeps the order of its indices, so a stable sort puts the lower index first.
        s, order = s.sort(dim=1, descending=True, stable=True)
        bound = rounding(q, g, rows, columns, torch.float64)
        close = (s[:, :-1] - s[:, 1:] <= 2 * bound).any(dim=1).nonzero()[:, 0]
        if len(close):
            squared = torch.full((len(close), width), torch.inf, dtype=torch.float64, device=q.x.device)
            which = positive[close]
            squared[which] = self._squared(row[close].expand(-1, width)[which], candidate[close][which])
            exact = squared.argsort(dim=1, stable=True)
            s[close] = s[close].gather(1, order[close].argsort(dim=1)).gather(1, exact)
            order[close] = exact
        # Copies, as views would keep what is cut off.
        return candidate.gather(1, order[:, :most]), s[:, :most].clone(), bound

    def count(self, tile: Tile) -> None:
        """Add the negatives of the tile's columns that come before each positive."""
        if not self.real.shape[1]:
            return
        for dtype in (torch.float32, torch.float64):
            s, slack = tile.similarities(dtype), tile.rounding(dtype) + self.rounding
            lower, upper = (self.threshold - slack).to(dtype), (self.threshold + slack).to(dtype)
            rows = torch.arange(len(s), device=s.device)
            if lower.shape[1] == 1:
                # Most rows hold nothing as near as the nearest positive; nearly all something as near as the farthest.
                near = (self.real & (s.amax(dim=1, keepdim=True) > lower)).nonzero()[:, 0]
                if len(near) * 4 <= len(s):
                    s, lower, upper, rows = s[near], lower[near], upper[near], near
            found = compare(s, lower, upper)
            if found.open <= _MANY * len(self.real) * s.shape[1]:
                break
        with self.adding:
            self.before[rows] += found.above
        for line, positive, which, column in found.parts:
            row = rows[line]
            item, candidate, query = column + tile.columns.start, self.candidate[row, positive], row + self.items.start
            squared, than = self._squared(query[which], item), self._squared(query, candidate)[which]
            lower_index = self.g.index[item] < self.g.index[candidate[which]]
            before = (squared < than) | ((squared == than) & lower_index)
            with self.adding:
                self.before.index_put_((row[which], positive[which]), before.long(), accumulate=True)

    def _squared(self, query: Tensor, item: Tensor) -> Tensor:
        """Squared distances [v] of queries [v] and items of the gallery [v], exact."""
        q, g, pairs = self.q, self.g, torch.stack([query, item], dim=1)
        found = [squared_distances(q.x[q.index[a]], g.x[g.index[b]]) for a, b in parts(pairs, q.x.shape[1])]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64, device=query.device)
