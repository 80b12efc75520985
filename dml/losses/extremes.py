"""The few entries of each row of the distance matrix that eq. 6 and 7 of the NRA paper ask for."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dml.losses.pairwise import exact_distances, pair_blocks, row_blocks
from dml.products import matmul

_DENSE = 512  # embeddings up to which few large operations beat many that leave work out
_MANY = 32  # members of a row in question from which all distances are computed instead
_CHUNK = 128  # columns whose least entry is looked at before any of them


class Extremes(NamedTuple):
    """For each valid anchor, the batch indices [v] of the four members that eq. 6 and 7 ask for."""

    anchor: Tensor
    farthest_positive: Tensor
    nearest_negative: Tensor
    farthest: Tensor
    nearest: Tensor


@torch.no_grad()
def extremes(x: Tensor, labels: Tensor, anchors: int | None = None) -> Extremes:
    """Find the extremes of each row of the distance matrix, without a graph, in blocks of rows.

    A valid anchor has a positive and a negative in the batch. Ties go to the lower index. Of `anchors` embeddings only,
    the first ones, if that is given.
    O(m^2 d) time, O(m d + block) memory. The result is that of exact distances: a matrix product proposes all members
    that its rounding leaves in question, and differences decide between them.
    """
    if len(x) <= _DENSE:
        return _densely(x, labels, anchors)
    _, own, sizes = labels.unique(return_inverse=True, return_counts=True)
    valid = _valid(sizes[own[:anchors]], len(x))
    find = _exactly
    if _fits((x - x.mean(dim=0)).square().sum(dim=1)):
        # Side by side, the members of a class are a narrow band of a block, and masks are needed only there.
        valid = valid[own[valid].argsort(stable=True)]
        find = _Proposals(x, own, sizes)
    found = [(rows, *find(x, own, rows)) for rows in row_blocks(x, valid)] or [(valid,) * 5]
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    order = columns[0].argsort()
    return Extremes(*(column[order] for column in columns))


def _valid(sizes: Tensor, m: int) -> Tensor:
    # By the labels, not by the distances: a NaN or an overflow must reach the loss, so that the run stops.
    return ((sizes > 1) & (sizes < m)).nonzero()[:, 0]


def _fits(norms: Tensor) -> bool:
    """Whether squared distances neither overflow nor vanish, by the squared norms around the mean; no for NaN."""
    largest, limits = float(norms.max()), torch.finfo(norms.dtype)
    return 8 * limits.tiny / limits.eps < largest < limits.max / 8


def _deciding(x: Tensor) -> Tensor:
    # float32 would decide by its last bits between members at nearly one distance; Apple's GPUs have nothing else.
    return x if x.device.type == "mps" else x.double()


def _exactly(x: Tensor, labels: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Farthest positive, nearest negative, farthest and nearest [b] of the anchors [b], from all distances."""
    x = _deciding(x)
    d = exact_distances(x[anchor], x)
    same = labels[anchor, None] == labels[None, :]
    self_ = anchor[:, None] == torch.arange(len(x), device=x.device)
    return (
        d.masked_fill(~same | self_, -torch.inf).argmax(dim=1),
        d.masked_fill(same, torch.inf).argmin(dim=1),
        d.masked_fill(self_, -torch.inf).argmax(dim=1),
        d.masked_fill(self_, torch.inf).argmin(dim=1),
    )


def _densely(x: Tensor, labels: Tensor, anchors: int | None) -> Extremes:
    """The same for few embeddings: all four entries of all rows at once, in few operations."""
    same = labels[:anchors, None] == labels
    anchor = _valid(same.sum(dim=1), len(x))
    if not len(anchor):
        return Extremes(*[anchor] * 5)
    centred = x - x.mean(dim=0)
    norms = centred.square().sum(dim=1)
    if not _fits(norms):
        return Extremes(anchor, *_exactly(x, labels, anchor))
    self_ = anchor[:, None] == torch.arange(len(x), device=x.device)
    own, same = centred.index_select(0, anchor), same.index_select(0, anchor)
    key = matmul(own, -2 * centred, norms)
    # Farthest positive, nearest negative, farthest and nearest: the least of each row of a quarter.
    keys = torch.stack([-key, key, -key, key]).masked_fill_(torch.stack([~same | self_, same, self_, self_]), torch.inf)
    slack = _rounding(x) * (norms[anchor].sqrt() + norms.max().sqrt()).square()
    near = keys <= keys.amin(dim=2, keepdim=True).add_(slack[:, None])
    row, column = near.flatten(0, 1).nonzero().unbind(1)
    if len(row) > _MANY * 4 * len(anchor):
        return Extremes(anchor, *_exactly(x, labels, anchor))
    sign = torch.tensor([-1, 1, -1, 1], device=x.device).repeat_interleave(len(anchor))
    return Extremes(anchor, *_decide(x, anchor.repeat(4), row, column, sign).chunk(4))


class _Proposals:
    """Finds the same as `_exactly`, in about the time of the matrix product."""

    def __init__(self, x: Tensor, labels: Tensor, sizes: Tensor) -> None:
        m = len(x)
        self.order = labels.argsort(stable=True)
        x = x[self.order]
        # Around its mean the batch has the smallest norms, and with them the smallest rounding errors.
        self.x = x - x.mean(dim=0)
        self.labels = labels[self.order]
        self.stop = sizes.cumsum(0)
        self.start = self.stop - sizes
        self.norms = self.x.square().sum(dim=1)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(m, device=x.device)
        self.minus_twice = F.pad(-2 * self.x, (0, 0, 0, -m % _CHUNK))
        self.add = F.pad(self.norms, (0, -m % _CHUNK))

    def __call__(self, x: Tensor, labels: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        m, own = len(self.x), self.place[anchor]
        low, high = int(self.start[self.labels[own[0]]]), int(self.stop[self.labels[own[-1]]])
        # The squared distances less what is the same in a row, |anchor|^2.
        key = matmul(self.x[own], self.minus_twice, self.add)
        slack = _rounding(self.x) * (self.norms[own].sqrt() + self.norms.max().sqrt()).square()
        key[:, m:] = -torch.inf
        farthest = _least(-key, slack)
        key[:, m:] = torch.inf

        rows = torch.arange(len(own), device=x.device)
        same = self.labels[own, None] == self.labels[None, low:high]
        other = ~same
        other[rows, own - low] = True
        positive = _least((-key[:, low:high]).masked_fill_(other, torch.inf), slack)
        key[rows, own] = torch.inf
        nearest = _least(key, slack)
        key[:, low:high].masked_fill_(same, torch.inf)
        negative = _least(key, slack)
        if positive is None or negative is None or farthest is None or nearest is None:
            return _exactly(x, labels, anchor)  # too many members at nearly one distance
        return (
            _decide(x, anchor, positive[0], self.order[positive[1] + low], -1),
            _decide(x, anchor, negative[0], self.order[negative[1]], 1),
            _decide(x, anchor, farthest[0], self.order[farthest[1]], -1),
            _decide(x, anchor, nearest[0], self.order[nearest[1]], 1),
        )


def _rounding(x: Tensor) -> float:
    # A product of d terms is off by d * eps / 2 * |a| |b| at most; twice that can swap two members.
    return (x.shape[1] + 4) * torch.finfo(x.dtype).eps


def _decide(x: Tensor, anchor: Tensor, row: Tensor, column: Tensor, sign: Tensor | int) -> Tensor:
    """Of the columns proposed for each row, at least one, that at the least sign * distance to its anchor [r]: [r]."""
    chosen = torch.empty_like(anchor)
    chosen[row] = column
    if len(row) > len(anchor):
        several = (row.bincount(minlength=len(anchor))[row] > 1).nonzero()[:, 0]
        row, column = row[several], column[several]
        parts = [
            torch.linalg.vector_norm(_deciding(x[anchor[row[i]]]) - _deciding(x[column[i]]), dim=1)
            for i in pair_blocks(x, row)
        ]
        d = (sign if isinstance(sign, int) else sign[row]) * torch.cat(parts)
        least = d.new_full((len(anchor),), torch.inf).scatter_reduce_(0, row, d, "amin")
        # Of equals the lower index.
        column = column.masked_fill(d > least[row], len(x))
        chosen.scatter_reduce_(0, row, column, "amin", include_self=False)
    return chosen


def _least(key: Tensor, slack: Tensor) -> tuple[Tensor, Tensor] | None:
    """(row, column) of the entries within slack [b] of the least of their row; None if they are very many."""
    b, width = key.shape
    # Minima without their places take a tenth of argmin's time; where there are no whole chunks, each entry is one.
    least = key.view(b, -1, _CHUNK).amin(dim=2) if width % _CHUNK == 0 else key
    limit = least.amin(dim=1) + slack
    row, chunk = torch.nonzero(least <= limit[:, None], as_tuple=True)
    if len(row) > _MANY * b:
        return None
    size = width // least.shape[1]
    members = chunk[:, None] * size + torch.arange(size, device=key.device)
    near, place = torch.nonzero(key[row[:, None], members] <= limit[row, None], as_tuple=True)
    return (row[near], members[near, place]) if len(near) <= _MANY * b else None
