"""The few entries of each row of the distance matrix that eq. 6 and 7 of the NRA paper ask for."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dml.losses.pairwise import exact_distances, is_small, pair_blocks, row_blocks
from dml.products import matmul

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
    _, own, sizes = labels.unique(return_inverse=True, return_counts=True)
    size = sizes[own]
    # Valid by the labels, not by the distances: a NaN or an overflow must reach the loss, so that the run stops.
    valid = torch.nonzero(((size > 1) & (size < len(x)))[:anchors]).squeeze(1)
    find = _exactly
    if not is_small(x) and _squares_fit(x):
        # Side by side, the members of a class are a narrow band of a block, and masks are needed only there.
        valid = valid[own[valid].argsort(stable=True)]
        find = _Proposals(x, own, sizes)
    found = [(rows, *find(x, own, rows)) for rows in row_blocks(x, valid)] or [(valid,) * 5]
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    order = columns[0].argsort()
    return Extremes(*(column[order] for column in columns))


def _squares_fit(x: Tensor) -> bool:
    """Whether squared distances neither overflow nor vanish; no for NaN."""
    largest = (x - x.mean(dim=0)).square().sum(dim=1).amax()
    limits = torch.finfo(x.dtype)
    return bool((largest < limits.max / 8) & (largest > 8 * limits.tiny / limits.eps))


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


class _Proposals:
    """Finds the same as `_exactly`, in about the time of the matrix product."""

    def __init__(self, x: Tensor, labels: Tensor, sizes: Tensor) -> None:
        m, d = x.shape
        self.order = labels.argsort(stable=True)
        self.exact = x = x[self.order]
        # Around its mean the batch has the smallest norms, and with them the smallest rounding errors.
        self.x = x - x.mean(dim=0)
        self.labels = labels[self.order]
        self.stop = sizes.cumsum(0)
        self.start = self.stop - sizes
        self.norms = self.x.square().sum(dim=1)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(m, device=x.device)
        self.minus_twice = F.pad(-2 * self.x, (0, 0, 0, -m % _CHUNK))
        # A product of d terms is off by d * eps / 2 * |a| |b| at most; twice that can swap two members.
        self.rounding = (d + 4) * torch.finfo(x.dtype).eps

    def __call__(self, x: Tensor, labels: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        m, own = len(self.x), self.place[anchor]
        low, high = int(self.start[self.labels[own[0]]]), int(self.stop[self.labels[own[-1]]])
        # The squared distances less what is the same in a row, |anchor|^2.
        key = matmul(self.x[own], self.minus_twice)
        key[:, :m] += self.norms
        slack = self.rounding * (self.norms[own].sqrt() + self.norms.max().sqrt()).square()
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
            self._decide(own, positive[0], positive[1] + low, -1),
            self._decide(own, *negative, 1),
            self._decide(own, *farthest, -1),
            self._decide(own, *nearest, 1),
        )

    def _decide(self, own: Tensor, row: Tensor, column: Tensor, sign: int) -> Tensor:
        """Of the proposed columns of each row the one at the smallest sign * distance, [b]."""
        chosen = torch.empty_like(own)
        chosen[row] = column
        several = torch.bincount(row, minlength=len(own))[row] > 1
        if several.any():
            row, column = row[several], column[several]
            # The last key first, as each sort keeps the order of the one before among equals.
            order = self.order[column].argsort()
            row, column = row[order], column[order]
            parts = [
                torch.linalg.vector_norm(_deciding(self.exact[own[row[i]]]) - _deciding(self.exact[column[i]]), dim=1)
                for i in pair_blocks(self.exact, row)
            ]
            order = (sign * torch.cat(parts)).argsort(stable=True)
            order = order[row[order].argsort(stable=True)]
            row, column = row[order], column[order]
            first = torch.ones_like(row, dtype=torch.bool)
            first[1:] = row[1:] != row[:-1]
            chosen[row[first]] = column[first]
        return self.order[chosen]


def _least(key: Tensor, slack: Tensor) -> tuple[Tensor, Tensor] | None:
    """(row, column) of the entries within slack [b] of the least of their row; None if they are very many."""
    b, width = key.shape
    # Minima without their places take a tenth of argmin's time; where there are no whole chunks, each entry is one.
    least = key.view(b, -1, _CHUNK).amin(dim=2) if width % _CHUNK == 0 else key
    limit = least.amin(dim=1) + slack
    row, chunk = torch.nonzero(least <= limit[:, None], as_tuple=True)
    if len(row) > 32 * b:
        return None
    size = width // least.shape[1]
    members = chunk[:, None] * size + torch.arange(size, device=key.device)
    near, place = torch.nonzero(key[row[:, None], members] <= limit[row, None], as_tuple=True)
    return (row[near], members[near, place]) if len(near) <= 32 * b else None
