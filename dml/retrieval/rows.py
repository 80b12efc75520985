"""Some queries with their positives, what is counted before each of these, and the ranks that follow."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from dml.retrieval.sides import Layout, Side
from dml.retrieval.tiles import Tile, compare, parts, rounding, same_cluster, similarities, squared_distances

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


class Rows:
    """Some queries, the rows of the gallery that hold their positives (edges), and what comes before each of these.

    Attributes:
        edge: [rows, e] pairs of the layout, the nearest first.
        threshold: [rows, e] their similarities, -inf where nothing is counted.
        rounding: [rows, e] the bound on the error of these.
        valid: [rows, e] which are edges at all; real: which hold a positive; tied: which are as near as the one before.
        before: [rows, e] items of other rows that are nearer than the edge (or as near, and before it by their index,
            if the rows have one item each).
        ties: (row, edge, row of the gallery), where rows may have several items: as near as the edge.
    """

    def __init__(self, q: Side, g: Side, layout: Layout, items: slice, nearest_only: bool) -> None:
        self.q, self.g, self.layout, self.items, self.nearest_only = q, g, layout, items, nearest_only
        self.pair_row = torch.from_numpy(layout.pair_row).to(q.x.device)
        sizes = np.diff(layout.pair_end, prepend=0)
        self.pair_size = torch.from_numpy(sizes).to(q.x.device)
        width = max(1, int((q.last[items] - q.first[items]).max()))
        found = [self._edges(slice(at, min(at + 128, items.stop)), width) for at in range(items.start, items.stop, 128)]
        most = max(each[0].shape[1] for each in found)
        padded = [[_padded(part, most) for part in each] for each in found]
        self.edge, self.threshold, self.valid, self.real, self.tied, self.rounding = map(
            torch.cat, zip(*padded, strict=True)
        )
        self.threshold.masked_fill_(~self.real, -torch.inf)
        self.before = torch.zeros(self.real.shape, dtype=torch.int64, device=q.x.device)
        self.ties: list[Tensor] = []
        self.adding = Lock()  # tiles of the same rows are counted at the same time

    def _edges(self, rows: slice, width: int) -> tuple[Tensor, ...]:
        """Edges, thresholds, valid, real, tied and the bound on the thresholds' error [rows, e] of some queries."""
        q, g = self.q, self.g
        first, last, own = q.first[rows, None], q.last[rows, None], q.own_pair[rows, None]
        pair = first + torch.arange(width, device=q.x.device)
        valid = pair < last
        pair = torch.where(valid, pair, 0)
        if self.layout.merged:
            # The row of the query itself may be of other classes only, if its label in the gallery is another.
            mine = q.own[rows, None]
            elsewhere = (own >= 0) & ~(valid & (self.pair_row[pair] == mine)).any(dim=1, keepdim=True)
            pair, valid = torch.cat([pair, own.clamp(min=0)], dim=1), torch.cat([valid, elsewhere], dim=1)
        inside = (first <= pair) & (pair < last)
        real = valid & inside & (self.pair_size[pair] > (pair == own).long())
        if not self.layout.merged:
            valid = real
        if not real.any():
            nothing = pair[:, :1]
            none = nothing.bool() & False
            return nothing, nothing.double(), none, none, none, nothing.double().fill_(0)
        row = self.pair_row[pair]
        columns = torch.unique(row[valid])
        if not self.layout.merged:
            columns = torch.arange(int(columns[0]), int(columns[-1]) + 1, device=columns.device)
        s = similarities(q, g, rows, columns, torch.float64)
        at = torch.searchsorted(columns, row).clamp(max=len(columns) - 1)
        s = s.gather(1, at)
        bound = rounding(q, g, rows, columns, torch.float64).expand_as(s)
        if (same := same_cluster(q, g, rows, columns)) is not None:
            near = similarities(q, g, rows, columns, torch.float64, near=True).gather(1, at)
            same = same.gather(1, at)
            s = torch.where(same, near, s)
            bound = torch.where(same, rounding(q, g, rows, columns, torch.float64, near=True), bound)
        s = s.masked_fill_(~valid, -torch.inf)
        # A class keeps the order of its indices, so a stable sort puts the lower index first.
        s, order = s.sort(dim=1, descending=True, stable=True)
        bound = bound.gather(1, order)
        close = (s[:, :-1] - s[:, 1:] <= bound[:, :-1] + bound[:, 1:]).any(dim=1).nonzero()[:, 0]
        tied = torch.zeros_like(valid)
        if len(close):
            squared = torch.full((len(close), pair.shape[1]), torch.inf, dtype=torch.float64, device=q.x.device)
            which = valid[close]
            query = (close + rows.start)[:, None].expand_as(which)
            squared[which] = self._squared(query[which], row[close][which])
            squared, exact = squared.sort(dim=1, stable=True)
            back = order[close].argsort(dim=1)
            s[close], bound[close] = (each[close].gather(1, back).gather(1, exact) for each in (s, bound))
            order[close] = exact
            tied[close[:, None], torch.arange(1, pair.shape[1], device=s.device)] = squared[:, 1:] == squared[:, :-1]
        pair, valid, real = (each.gather(1, order) for each in (pair, valid, real))
        tied &= valid
        if self.nearest_only:
            # The nearest with a positive, all that are as near, and what comes before.
            run = (~tied).cumsum(dim=1)
            at = torch.where(real, run, run.shape[1] + 1).amin(dim=1, keepdim=True)
            kept = (run <= at) if self.layout.merged else torch.arange(run.shape[1], device=s.device) < 1
            most = int(kept.expand_as(run).sum(dim=1).max())
            valid, real = valid & kept, real & kept & ((run == at) | torch.tensor(not self.layout.merged))
        else:
            most = pair.shape[1] if self.layout.merged else int(real.sum(dim=1).max())
        # Copies, as views would keep what is cut off.
        return tuple(each[:, :most].clone() for each in (pair, s, valid, real, tied, bound))

    def count(self, tile: Tile) -> None:
        """Add the items of the tile's columns that come before each edge."""
        if not self.real.any():
            return
        for dtype in (torch.float64,) if tile.q.place.whole else (torch.float32, torch.float64):
            s, slack = tile.similarities(dtype), tile.rounding(dtype) + self.rounding
            lower, upper = (self.threshold - slack).to(dtype), (self.threshold + slack).to(dtype)
            rows = torch.arange(len(s), device=s.device)
            if lower.shape[1] == 1:
                # Most rows hold nothing as near as the nearest positive; nearly all something as near as the farthest.
                near = (self.real & (s.amax(dim=1, keepdim=True) > lower)).nonzero()[:, 0]
                if len(near) * 4 <= len(s):
                    s, lower, upper, rows = s[near], lower[near], upper[near], near
            found = compare(s, lower, upper, tile.weight)
            # Comparing again costs as much as the product, and more the more edges there are.
            if found.open <= _MANY * len(self.real) * (s.shape[1] + 8 * lower.shape[1]):
                break
        with self.adding:
            self.before[rows] += found.above
        for line, edge, which, column in found.parts:
            row = rows[line]
            item, mark, query = column + tile.columns.start, self.pair_row[self.edge[row, edge]], row + self.items.start
            squared, than = self._squared(query[which], item), self._squared(query, mark)[which]
            row, edge, nearer, equal = row[which], edge[which], squared < than, squared == than
            if tile.weight is None:
                nearer |= equal & (self.g.index[item] < self.g.index[mark[which]])
                counted = nearer.long()
            else:
                counted = nearer * tile.weight[column]
            with self.adding:
                self.before.index_put_((row, edge), counted, accumulate=True)
                if tile.weight is not None and equal.any():
                    self.ties.append(torch.stack([row[equal], edge[equal], item[equal]]))

    def _squared(self, query: Tensor, item: Tensor) -> Tensor:
        """Squared distances [v] of queries [v] and rows of the gallery [v], exact."""
        q, g, pairs = self.q, self.g, torch.stack([query, item], dim=1)
        found = [squared_distances(q.x[q.index[a]], g.x[g.index[b]]) for a, b in parts(pairs, q.x.shape[1])]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64, device=query.device)


def _padded(part: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, width - part.shape[1]))


def ranks_of_rows(blocks: list[Rows], add_up: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, Ranks]:
    """The queries [q], in their order, and the ranks of their positives, where every row of the gallery is one item."""
    before = add_up(np.concatenate([rows.before[rows.real].numpy(force=True) for rows in blocks]))
    positives = np.concatenate([rows.real.sum(dim=1).numpy(force=True) for rows in blocks])
    index = np.concatenate([rows.q.index[rows.items].numpy(force=True) for rows in blocks])
    first = np.repeat(positives.cumsum() - positives, positives)
    return _in_order(index, positives, before + np.arange(len(before)) - first)  # nearer positives come before it too


def ranks_of_merged(blocks: list[Rows], add_up: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, Ranks]:
    """The same, where rows of the gallery have several items each, which come in the order of their indices."""
    expanded = [_expanded(rows) for rows in blocks]
    total = iter(
        np.split(add_up(np.concatenate([each[2] for each in expanded])), np.cumsum([len(e[2]) for e in expanded]))
    )
    counts, ranks = [], []
    for (row, fixed, _), rows in zip(expanded, blocks, strict=True):
        found = fixed + next(total)
        order = np.lexsort((found, row))
        row, found = row[order], found[order]
        if rows.nearest_only:
            nearest = np.diff(row, prepend=-1) > 0
            row, found = row[nearest], found[nearest]
        counts.append(np.bincount(row, minlength=len(rows.real)))
        ranks.append(found)
    index = np.concatenate([rows.q.index[rows.items].numpy(force=True) for rows in blocks])
    return _in_order(index, np.concatenate(counts), np.concatenate(ranks))


def _expanded(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each positive item [p] of the queries: its query, what comes before it for certain, what was counted in tiles."""
    layout = rows.layout
    pair, valid, real, tied, before = (
        each.numpy(force=True) for each in (rows.edge, rows.valid, rows.real, rows.tied, rows.before)
    )
    own_row, own_item = (each[rows.items].numpy(force=True) for each in (rows.q.own, rows.q.own_item))
    gallery_row = layout.pair_row[pair]
    weight = np.where(valid, layout.weight[gallery_row], 0)
    place = np.arange(pair.shape[1])
    start = np.maximum.accumulate(np.where(tied, 0, place), axis=1)  # where the edges as near begin
    nearer = np.take_along_axis(weight.cumsum(axis=1) - weight, start, axis=1)
    itself = valid & (gallery_row == own_row[:, None])
    nearer -= itself.any(axis=1, keepdims=True) & (itself.argmax(axis=1)[:, None] < start)
    line, edge = real.nonzero()
    sizes = np.diff(layout.pair_end, prepend=0)[pair[line, edge]]
    line, edge, mark = (np.repeat(each, sizes) for each in (line, edge, pair[line, edge]))
    inside = np.arange(len(line)) - np.repeat(sizes.cumsum() - sizes, sizes)
    item = layout.pair_items[layout.pair_end[mark] - np.repeat(sizes, sizes) + inside]
    other = item != own_item[line]
    line, edge, item = line[other], edge[other], item[other]

    def as_near(at: np.ndarray, of: np.ndarray) -> np.ndarray:
        """How many items of rows [v] of the gallery, other than the query, come before the positives `at` [v]."""
        return layout.before(of, item[at]) - ((of == own_row[line[at]]) & (own_item[line[at]] < item[at]))

    every = np.arange(len(line))
    fixed = nearer[line, edge] + as_near(every, gallery_row[line, edge])
    for shift in range(1, int((place - start).max(initial=0)) + 1):
        for to in (edge - shift, edge + shift):
            there = to.clip(0, pair.shape[1] - 1)
            at = np.flatnonzero((to == there) & (start[line, there] == start[line, edge]) & valid[line, there])
            fixed[at] += as_near(at, gallery_row[line[at], there[at]])
    counted = before[line, edge]
    if rows.ties:
        key = line * pair.shape[1] + edge
        row, mark, of = torch.cat(rows.ties, dim=1).numpy(force=True)
        first, last = (np.searchsorted(key, row * pair.shape[1] + mark, side=side) for side in ("left", "right"))
        at = np.repeat(last - (last - first).cumsum(), last - first) + np.arange((last - first).sum())
        np.add.at(counted, at, as_near(at, np.repeat(of, last - first)))
    return line, fixed, counted


def _in_order(index: np.ndarray, counts: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, Ranks]:
    """Queries [q] and their ranks, by the place of the queries before they were ordered."""
    order = np.argsort(index)
    return index[order], Ranks(ranks[np.argsort(np.repeat(index, counts), kind="stable")], counts[order])
