"""Tiles of the matrix of similarities between queries and gallery, the bound on their rounding, and exact distances."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dml.products import matmul
from dml.retrieval.sides import Layout, Side

_AT_ONCE = 2**19  # coordinates, or comparisons, that are held when pairs are looked at one by one
_LISTED = 1 / 4  # share of a tile up to which its entries above the lowest edge, times edges, are listed
_FEW = 8  # thresholds of a row up to which comparing with each of them is faster than sorting the row


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [...] of rows [..., D], float64 from differences.

    Summed by halves, one operation after the other, so that every device and every batch of rows gives the same bits.
    """
    terms = (a.double() - b.double()).square_()
    while (dim := terms.shape[-1]) > 1:
        half = (dim + 1) // 2
        terms[..., : dim - half] += terms[..., half:]
        terms = terms[..., :half]
    return terms[..., 0]


def similarities(
    q: Side, g: Side, rows: slice, columns: slice | Tensor, dtype: torch.dtype, near: bool = False
) -> Tensor:
    """-|q - g|^2 / 2 of some queries and some of the gallery by a product of that precision: [rows, columns].

    near: around the centres of their clusters, which says something of those that are of the same.
    Of whole numbers it is exact, and less by a part below 1 that grows with the index of the row, all times a number:
    no two rows are equally near.
    """
    if q.place.whole:
        a, b = q.exact(rows), g.exact(columns)
        s = matmul(a, b, b.square().sum(dim=1) / -2).mul_(2).sub_(a.square().sum(dim=1)[:, None])
        return s.mul_(len(g) + 1).sub_(g.index[columns])
    a, b = ((side.near if near else side.moved)[part] for side, part in ((q, rows), (g, columns)))
    if dtype == torch.float64:
        a, b = (side.exact_near(part) if near else side.exact(part) for side, part in ((q, rows), (g, columns)))
    of_q, of_g = (q.near_norm, g.near_norm) if near else (q.norm, g.norm)
    s = matmul(a, b, (of_g[columns].square() / -2).to(dtype))
    s -= (of_q[rows, None].square() / 2).to(dtype)
    return s


def same_cluster(q: Side, g: Side, rows: slice, columns: slice | Tensor) -> Tensor | None:
    """Which [rows, columns] are of the same cluster; None if none are."""
    if q.cluster is None or g.cluster is None:
        return None
    a, b = q.cluster[rows], g.cluster[columns]
    if not torch.isin(a[a >= 0], b).any():
        return None
    return (a[:, None] == b) & (a >= 0)[:, None]


def rounding(q: Side, g: Side, rows: slice, columns: slice | Tensor, dtype: torch.dtype, near: bool = False) -> Tensor:
    """Bound [rows, 1] on the error of those similarities, and of as large a number rounded to that precision.

    A sum of D products in any order is off by at most D u |q||g| (Higham 2002, section 3.1), u being half of eps; the
    rest is rounded inputs, norms and the two subtractions. Norms and exact distances are sums in float64 in either
    precision. The last term is what can vanish below float32's smallest.
    """
    if q.place.whole:
        return torch.zeros((len(q.norm[rows]), 1), dtype=torch.float64, device=q.norm.device)
    of_q, of_g = (q.near_norm, g.near_norm) if near else (q.norm, g.norm)
    own, far = of_q[rows, None], of_g[columns].max()
    dim, u, both = q.x.shape[1], torch.finfo(dtype).eps / 2, own**2 + far**2
    product = u * ((dim + 8) * own * far + 8 * both)
    return product + torch.finfo(torch.float64).eps * (dim + 8) * both + 2 * dim * torch.finfo(torch.float32).tiny


class Tile:
    """Similarities of some queries (rows) to some rows of the gallery (columns); -inf to the own class and itself.

    Made once in each precision that is asked for. A tile is of the pairs that are of different clusters or, if near,
    of the same one; -inf for the others.
    """

    def __init__(self, q: Side, g: Side, layout: Layout, rows: slice, columns: slice, near: bool = False) -> None:
        self.q, self.g, self.layout, self.rows, self.columns, self.near = q, g, layout, rows, columns, near
        self.same = same_cluster(q, g, rows, columns)
        self.made: dict[torch.dtype, Tensor] = {}
        self.weight: Tensor | None = None  # items of each column, if one can have several
        if layout.merged:
            self.weight = torch.from_numpy(layout.weight[columns]).to(g.x.device)

    def turned(self) -> "Tile":
        """The tile as its columns see it, where items are searched among each other."""
        tile = Tile(self.g, self.q, self.layout, self.columns, self.rows, self.near)
        if not self.q.place.whole:  # those know their columns by index
            tile.made = {dtype: s.T for dtype, s in self.made.items()}
        return tile

    def similarities(self, dtype: torch.dtype) -> Tensor:
        """In that precision: [rows, columns]."""
        if dtype not in self.made:
            s = similarities(self.q, self.g, self.rows, self.columns, dtype, self.near)
            if self.same is not None:
                s.masked_fill_(~self.same if self.near else self.same, -torch.inf)
            self._leave_out_classes(s)
            own = self.q.own[self.rows] - self.columns.start  # of another class, if its label there is another
            here = ((own >= 0) & (own < s.shape[1])).nonzero()[:, 0]
            s[here, own[here]] = -torch.inf
            self.made[dtype] = s
        return self.made[dtype]

    def _leave_out_classes(self, s: Tensor) -> None:
        first, last = self.q.first[self.rows], self.q.last[self.rows]
        if not self.layout.merged:  # pairs are rows, so a class is one piece
            first, last = first[:, None] - self.columns.start, last[:, None] - self.columns.start
            if ((first < s.shape[1]) & (last > 0)).any():
                column = torch.arange(s.shape[1], device=s.device)
                s.masked_fill_((first <= column) & (column < last), -torch.inf)
            return
        kinds, kind = torch.unique(torch.stack([first, last]), dim=1, return_inverse=True)
        first, last = kinds.numpy(force=True)
        which = np.repeat(np.arange(len(first)), last - first)
        pairs = np.arange(len(which)) - np.repeat((last - first).cumsum() - last, last - first)
        column = self.layout.pair_row[pairs] - self.columns.start
        here = (column >= 0) & (column < s.shape[1])
        mates = np.zeros((len(first), s.shape[1]), dtype=bool)
        mates[which[here], column[here]] = True
        s.masked_fill_(torch.from_numpy(mates).to(s.device)[kind], -torch.inf)

    def rounding(self, dtype: torch.dtype) -> Tensor:
        """Bound [rows, 1] on their error."""
        return rounding(self.q, self.g, self.rows, self.columns, dtype, self.near)


@dataclass(frozen=True)
class Comparison:
    """How the entries of each row of a tile compare with the row's edges, each a pair of a lower and an upper bound.

    Attributes:
        above: [rows, edges] how many entries of the row are above the upper bound, by the weights of their columns.
        open: how many are above the lower bound but not above the upper, in the whole tile.
        parts: yields these, some at a time: (row [e], edge [e], which [v], column [v]). Each of v is the entry in that
            column of the row that `which` says, open for the edge that it says.
    """

    above: Tensor
    open: int
    parts: Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]


def compare(s: Tensor, lower: Tensor, upper: Tensor, weight: Tensor | None = None) -> Comparison:
    """Compare s [rows, c] with the bounds [rows, e], the highest first; -inf is none: `above` says nothing there.

    weight [c]: how many an entry of each column counts for; None: one.
    """
    # One edge is counted sooner than listed.
    if s.device.type == "cpu" and lower.shape[1] > 1 and (few := _by_listing(s, lower, upper, weight)):
        return few
    above, possibly = _above(s, torch.cat([upper, lower], dim=1), weight).chunk(2, dim=1)
    undecided = possibly - above
    return Comparison(above, int(undecided.sum()), _between(s, lower, upper, undecided.nonzero()))


def _by_listing(s: Tensor, lower: Tensor, upper: Tensor, weight: Tensor | None) -> Comparison | None:
    """The same, where most entries are below all edges of their row: the others in a list; None if they are many.

    In numpy, which takes a fourth of torch's time for lists of this length.
    """
    turned = not s.is_contiguous()
    x = (s.T if turned else s).numpy()
    lowest = lower.masked_fill(lower == -torch.inf, torch.inf).amin(dim=1).numpy()
    mask = x > (lowest if turned else lowest[:, None])
    if np.count_nonzero(mask) * lower.shape[1] > _LISTED * x.size:
        return None
    place = _true_places(mask)
    value, row, column = x.reshape(-1).take(place), *np.divmod(place, x.shape[1])
    if turned:
        row, column = column, row
    above, left = np.empty(lower.shape, dtype=np.int64), []
    low, high = (bound.T.contiguous().numpy() for bound in (lower, upper))

    def count(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.bincount(row, None if weight is None else weight.numpy().take(column), minlength=len(s))

    # From the lowest edge to the highest, the list gets shorter.
    for edge in reversed(range(lower.shape[1])):
        keep = np.flatnonzero(value > low[edge].take(row))
        value, row, column = value.take(keep), row.take(keep), column.take(keep)
        undecided = np.flatnonzero(value <= high[edge].take(row))
        left.append(np.stack([row.take(undecided), np.full_like(undecided, edge), column.take(undecided)]))
        above[:, edge] = count(row, column) - count(left[-1][0], left[-1][2])
    row, edge, column = torch.from_numpy(np.concatenate(left, axis=1))
    return Comparison(torch.from_numpy(above), len(row), iter([(row, edge, torch.arange(len(row)), column)]))


def _above(s: Tensor, edges: Tensor, weight: Tensor | None) -> Tensor:
    """How many entries of each row [c] of s lie above each of the row's edges [e]: [rows, e]."""
    if edges.shape[1] <= 2 * _FEW:
        # Floats of the same layout and contiguous edges: only then does the processor compare and add up many at once.
        buffer = torch.empty_like(s)
        weights = None if weight is None else weight.to(s.dtype)
        counts = []
        for edge in edges.T.contiguous():
            torch.gt(s, edge[:, None], out=buffer)
            counts.append(buffer.sum(dim=1) if weights is None else buffer @ weights)
        return torch.stack(counts, dim=1).long()
    if edges.shape[1] > 2 * s.shape[1] and weight is None:
        return torch.cat([_above_many(s, half) for half in edges.chunk(2, dim=1)], dim=1)
    order = None
    if weight is not None:
        ordered, order = s.sort(dim=1)
    elif s.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(np.ascontiguousarray(s.numpy()), axis=1))  # many times faster than torch's
    else:
        ordered = s.sort(dim=1).values
    place = torch.searchsorted(ordered, edges.contiguous(), right=True)
    if weight is None or order is None:
        return s.shape[1] - place
    below = torch.nn.functional.pad(weight[order].cumsum(dim=1), (1, 0))
    return below[:, -1:] - below.gather(1, place)


def _above_many(s: Tensor, edges: Tensor) -> Tensor:
    """The same, where edges are more than entries: these are looked up in those."""
    ascending, order = edges.sort(dim=1) if (edges.diff(dim=1) > 0).any() else (edges.flip(1), None)
    place = torch.searchsorted(ascending, s.contiguous())
    passed = torch.zeros((len(s), edges.shape[1] + 1), dtype=torch.int64, device=s.device)
    passed.scatter_add_(1, place, torch.ones_like(place))
    above = s.shape[1] - passed.cumsum(dim=1)[:, :-1]
    return above.flip(1) if order is None else torch.empty_like(above).scatter_(1, order, above)


def _between(s: Tensor, lower: Tensor, upper: Tensor, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The parts of a comparison, of the pairs [e, 2] of rows and edges in question."""
    for row, edge in parts(pairs, s.shape[1]):
        x, low, high = s[row], lower[row, edge, None], upper[row, edge, None]
        if s.device.type == "cpu":
            place = torch.from_numpy(_true_places((x.numpy() > low.numpy()) & (x.numpy() <= high.numpy())))
            yield row, edge, place // s.shape[1], place % s.shape[1]
        else:
            which, column = ((x > low) & (x <= high)).nonzero().unbind(1)
            yield row, edge, which, column


def _true_places(mask: np.ndarray) -> np.ndarray:
    """np.flatnonzero, in a third of its time where few are true: by words of eight first."""
    if mask.size % 8:
        return np.flatnonzero(mask)
    eight = mask.reshape(-1).view(np.uint64)
    words = np.flatnonzero(eight != 0)
    inside = np.flatnonzero(eight.take(words).view(bool))
    return words.take(inside >> 3) * 8 + (inside & 7)


def parts(pairs: Tensor, each: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Columns of the pairs [v, 2], some at a time, where one takes `each` entries."""
    for part in pairs.split(max(1, _AT_ONCE // each)):
        if len(part):
            yield part[:, 0], part[:, 1]
