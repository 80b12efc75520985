"""Queries and gallery, laid out for tiles: classes side by side, and rows that are equal bit for bit as one."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Place:
    """Where embeddings lie. Around another centre distances are the same, and products lose fewer digits."""

    centre: Tensor  # [D] float64
    scale: float  # the largest distance from it, so that nothing overflows or vanishes in float32
    whole: bool = False  # moved, all coordinates are whole numbers so small that float64 products are exact

    @classmethod
    def of(cls, queries: Tensor, gallery: Tensor) -> "Place":
        """Around the mean of the gallery; around zero if all coordinates are multiples of a number."""
        if unit := common_unit(queries, gallery):
            return cls(torch.zeros(gallery.shape[1], dtype=torch.float64, device=gallery.device), unit, whole=True)
        total = sum(part.double().sum(dim=0) for part in gallery.split(1024))
        place = cls(total / len(gallery), 1.0)
        largest = max(float(place.move(part).norm(dim=1).max()) for x in (queries, gallery) for part in x.split(1024))
        return cls(place.centre, largest or 1.0)

    def move(self, x: Tensor) -> Tensor:
        """Embeddings [n, D] in float64, moved to the centre and brought to lengths of at most 1."""
        return (x.double() - self.centre) / self.scale


def common_unit(*sides: Tensor) -> float | None:
    """What all coordinates are small multiples of, as those of signs, codes and counts are; None if there is none.

    Small enough that a squared distance times the number of rows, in this unit, is a whole number in float64.
    """
    smallest = min(float(torch.where(part == 0, torch.inf, part.abs()).min()) for x in sides for part in x.split(1024))
    largest = max(float(part.abs().max()) for x in sides for part in x.split(1024))
    for unit in (smallest, smallest / 2):
        if largest and sides[0].shape[1] * (2 * largest / unit) ** 2 * (len(sides[-1]) + 1) < 2**52:
            parts = ((part.double(), (part.double() / unit).round() * unit) for x in sides for part in x.split(1024))
            if all(torch.equal(part, multiple) for part, multiple in parts):
                return unit
    return None


def row_sums(x: Tensor) -> np.ndarray:
    """A number for each row [N] of float32, equal for equal rows and as good as never for others."""
    bits = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (x.shape[1],), generator=bits).mul_(2).add_(1).to(x.device)
    # Whole numbers wrap around, so equal rows have equal sums, wherever they stand; 0.0 makes one zero of two.
    sums = [((part + 0.0).contiguous().view(torch.int32) * odd).sum(dim=1) for part in x.split(1024)]
    return torch.cat(sums).numpy(force=True)


def equal_rows(x: Tensor) -> np.ndarray:
    """For each row [N] the index of the first row that equals it."""
    _, first, group = np.unique(row_sums(x), return_index=True, return_inverse=True)
    same = first[group]
    for rows, others in zip(x.split(1024), torch.from_numpy(same).to(x.device).split(1024), strict=True):
        if not torch.equal(rows, x[others]):  # two different rows have the same sum: one chance in 2**30 and less
            _, first, group = np.unique(x.numpy(force=True) + 0.0, axis=0, return_index=True, return_inverse=True)
            return first[group.reshape(-1)]
    return same


class Layout:
    """The gallery's rows and classes. A row of several items (equal bit for bit) may be of several classes.

    Attributes:
        rows: [U] the item that stands for each row, in the order of the layout: classes side by side, beside others
            with as many rows. merged: whether a row can have several items.
        row_of: [N] the row of each item. weight: [U] items of each row.
        pair_row: [T] the rows of each class, class after class; pair_of: [N] the pair of each item.
        pair_items: [N] the items, pair after pair; pair_end: [T] where those of a pair end.
    """

    def __init__(self, labels: np.ndarray, same: np.ndarray | None) -> None:
        n = len(labels)
        self.merged = same is not None
        same = np.arange(n) if same is None else same
        self.classes, of_class = np.unique(labels, return_inverse=True)
        firsts, group = np.unique(same, return_inverse=True)
        u = len(firsts)
        rows_of_class = np.bincount(np.unique(of_class * u + group) // u, minlength=len(self.classes))
        self.order = np.empty(len(self.classes), dtype=np.int64)  # the place of each class
        by_size = np.argsort(rows_of_class, kind="stable")
        self.order[by_size] = np.arange(len(by_size))
        self.ends = rows_of_class[by_size].cumsum()  # of the pairs, by the place of the class
        self.sizes = rows_of_class[by_size]
        arranged = np.argsort(self.order[of_class[firsts]], kind="stable")
        self.rows = firsts[arranged]
        place = np.empty(u, dtype=np.int64)
        place[arranged] = np.arange(u)
        self.row_of = place[group]
        self.weight = np.bincount(self.row_of, minlength=u)
        keys, self.pair_of = np.unique(self.order[of_class] * u + self.row_of, return_inverse=True)
        self.pair_row = keys % u
        self.pair_items = np.argsort(self.pair_of, kind="stable")
        self.pair_end = np.bincount(self.pair_of, minlength=len(keys)).cumsum()
        # Items of each row in the order of their index, to count those before an item.
        self.keys = np.sort(self.row_of * n + np.arange(n))

    def place_of(self, labels: np.ndarray) -> np.ndarray:
        """The place of each label's class, -1 if the gallery lacks it."""
        found = np.searchsorted(self.classes, labels).clip(max=len(self.classes) - 1)
        return np.where(self.classes[found] == labels, self.order[found], -1)

    def before(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """How many items of some rows [v] have a lower index than some items [v]."""
        n = len(self.row_of)
        return np.searchsorted(self.keys, rows * n + items) - np.searchsorted(self.keys, rows * n)


class Side:
    """Queries, or the rows of the gallery, in an order that has classes side by side.

    Attributes:
        x: [m, D] as they came.
        index: [n] the place in x.
        first, last: [n] where in the layout the pairs of the item's class begin and end; 0, 0 if it is not there.
        own, own_pair, own_item: [n] the row, the pair and the index in the gallery of the item itself; -1: not there.
        moved: [n, D] float32, ordered and moved to their Place. norm: [n] float64, of the moved.
        cluster: [n] of rows that lie so close together that products around a common centre cannot tell their distances
            apart, -1 if it is alone; None if all are. near, near_norm: as moved and norm, around the cluster's centre.
    """

    def __init__(self, x: Tensor, index: np.ndarray, place: Place) -> None:
        self.x, self.place = x, place
        self.index = torch.from_numpy(index).to(x.device)
        self.moved = torch.empty((len(index), x.shape[1]), device=x.device)
        self.norm = torch.empty(len(index), dtype=torch.float64, device=x.device)
        for at in range(0, len(index), 1024):
            part = slice(at, at + 1024)
            self.moved[part] = exact = self.exact(part)
            self.norm[part] = exact.norm(dim=1)
        self.cluster: Tensor | None = None

    def gather(self, cluster: Tensor, centres: Tensor) -> None:
        """Say which cluster [n] each row is of, and what their centres [c, D] are, as they came."""
        self.cluster, self.centres = cluster, centres
        self.near, self.near_norm = torch.zeros_like(self.moved), torch.zeros_like(self.norm)
        for at in range(0, len(self), 1024):
            part = slice(at, at + 1024)
            self.near[part] = exact = self.exact_near(part)
            self.near_norm[part] = exact.norm(dim=1)

    def search(self, layout: Layout, places: np.ndarray, own_item: np.ndarray) -> None:
        """Say what the ordered items look for: the place [n] of their class, and where [n] they are themselves."""
        known, inside = places >= 0, own_item >= 0
        last = np.where(known, layout.ends[places], 0)
        first = last - np.where(known, layout.sizes[places], 0)
        own = np.where(inside, layout.row_of[own_item], -1)
        own_pair = np.where(inside, layout.pair_of[own_item], -1)
        on = lambda values: torch.from_numpy(values).to(self.x.device)  # noqa: E731
        self.first, self.last, self.own, self.own_pair, self.own_item = map(on, (first, last, own, own_pair, own_item))

    def __len__(self) -> int:
        return len(self.index)

    def exact(self, items: slice | Tensor) -> Tensor:
        """The moved embeddings [n, D] in float64."""
        return self.place.move(self.x[self.index[items]])

    def exact_near(self, items: slice | Tensor) -> Tensor:
        """The embeddings [n, D] in float64 around the centre of their cluster, 0 for those of none."""
        assert self.cluster is not None
        cluster = self.cluster[items]
        apart = (self.x[self.index[items]].double() - self.centres[cluster].double()) / self.place.scale
        return apart.masked_fill_((cluster < 0)[:, None], 0)


def find_clusters(q: Side, g: Side) -> None:
    """Find rows of the gallery that lie within a thousandth of another, where there are many, and queries beside them.

    By cells of some projections; what falls into another cell by chance is only compared the slow way.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(g.moved.shape[1], 8, generator=generator), dim=0)
    offset = torch.rand(8, generator=generator)
    odd = torch.randint(-(2**62), 2**62, (8,), generator=generator).mul_(2).add_(1)

    def cells(side: Side) -> np.ndarray:
        place = side.moved @ directions.to(side.moved) * 64 + offset.to(side.moved)
        return (place.floor().long() * odd.to(place.device)).sum(dim=1).numpy(force=True)

    cell = cells(g)
    names, first, of, counts = np.unique(cell, return_index=True, return_inverse=True, return_counts=True)
    if (counts**2).sum() <= 4 * len(cell):
        return
    many = np.flatnonzero(counts > 1)
    number = np.full(len(names), -1)
    number[many] = np.arange(len(many))
    centres = g.x[g.index[torch.from_numpy(first[many]).to(g.x.device)]]

    def members(side: Side, cluster: np.ndarray) -> Tensor:
        own = torch.from_numpy(cluster).to(side.x.device)
        for at in range(0, len(side), 1024):
            part = slice(at, at + 1024)
            apart = (side.x[side.index[part]].double() - centres[own[part]].double()).norm(dim=1)
            own[part] = own[part].masked_fill(apart > 1e-3 * side.place.scale, -1)
        return own

    found = members(g, number[of])
    sizes = torch.bincount(found[found >= 0], minlength=1)
    if int((sizes**2).sum()) <= 4 * len(cell):
        return
    g.gather(found, centres)
    if q is not g:
        at = np.searchsorted(names, asked := cells(q)).clip(max=len(names) - 1)
        q.gather(members(q, np.where(names[at] == asked, number[at], -1)), centres)
