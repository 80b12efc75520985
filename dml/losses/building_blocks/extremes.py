"""The few entries of each row of the distance matrix that eq. 6 and 7 of the NRA paper ask for."""

import functools
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dml.losses.building_blocks.host import Places, Unsure, few_places, on_host, settled, to_device
from dml.losses.building_blocks.pairwise import exact_distances, pair_blocks, row_blocks
from dml.products import matmul

_DENSE = 512  # embeddings up to which few large operations beat many that leave work out
_UNREAD = 2**24  # entries of the distance matrix up to which a list of fixed length takes no more memory than they
_ROOM = 4  # members in question of each anchor and extreme for which such a list has room
_MANY = 32  # members of a row in question from which all distances are computed instead
_CHUNK = 128  # columns whose least entry is looked at before any of them

# Everything below comes in the order farthest, nearest negative, farthest positive, nearest, or only the two in the
# middle. Each is the member with the least distance, or the least of minus the distance.
_SIGNS = (-1, 1, -1, 1)
_T = TypeVar("_T")
_Found: TypeAlias = tuple[Tensor, Tensor]  # anchors and their members


@torch.no_grad()
def extremes(x: Tensor, labels: Tensor, anchors: int | None = None, *, of_classes_only: bool = False) -> _Found:
    """Find the extremes of each row of the distance matrix, without a graph, in blocks of rows.

    A valid anchor has a positive and a negative in the batch. Ties go to the lower index. Of `anchors` embeddings only,
    the first ones, if that is given.
    O(m^2 d) time, O(m d + block) memory. The result is that of exact distances: a matrix product proposes all members
    that its rounding leaves in question, and differences decide between them.

    Returns:
        Batch indices: the valid anchors [v], and in rows [4, v] the farthest member of the batch, the nearest negative,
        the farthest positive and the nearest member of each; of_classes_only: the two in the middle alone, [2, v].
    """
    return settled(lambda unsure: _find(x, labels, anchors, of_classes_only, unsure), x.device)


def _find(x: Tensor, labels: Tensor, anchors: int | None, of_classes_only: bool, unsure: Unsure) -> _Found:
    if unsure is not None and len(x) * (anchors or len(x)) <= _UNREAD:
        return _unread(x, labels, anchors, of_classes_only, unsure)
    if len(x) <= _DENSE:
        return _densely(x, labels, anchors, of_classes_only)
    _, own, sizes = labels.unique(return_inverse=True, return_counts=True)
    valid = _valid(sizes[own[:anchors]], len(x))
    # Side by side, the members of a class are a narrow band of a block, and masks are needed only there.
    valid = valid[own[valid].argsort(stable=True)]
    proposals = _Proposals(x, own, sizes, of_classes_only)
    find: Callable[[Tensor], Tensor] = proposals if _fits(proposals.largest) else proposals.otherwise
    none = valid.new_empty(len(_wanted(_SIGNS, of_classes_only)), 0)
    members = torch.cat([none, *(find(rows) for rows in row_blocks(x, valid))], dim=1)
    order = valid.argsort()
    return valid[order], members[:, order]


def _wanted(four: tuple[_T, _T, _T, _T], of_classes_only: bool) -> list[_T]:
    return list(four[1:3] if of_classes_only else four)


def _valid(sizes: Tensor, m: int) -> Tensor:
    # By the labels, not by the distances: a NaN or an overflow must reach the loss, so that the run stops.
    return ((sizes > 1) & (sizes < m)).nonzero()[:, 0]


def _fits(largest: Tensor) -> bool:
    """Whether squared distances neither overflow nor vanish, by the largest squared norm around the mean; NaN: no."""
    low, high = _limits(largest.dtype)
    return low < float(largest) < high


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    limits = torch.finfo(dtype)
    return 8 * limits.tiny / limits.eps, limits.max / 8


def _deciding(x: Tensor) -> Tensor:
    # float32 would decide by its last bits between members at nearly one distance; Apple's GPUs have nothing else.
    return x if x.device.type == "mps" else x.double()


def _left_out(same: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks [b, m] of what can be none of the four, by the mask of the anchors' [b] classes."""
    self_ = anchor[:, None] == torch.arange(same.shape[1], device=same.device)
    return self_, same, ~same | self_, self_


def _exactly(x: Tensor, labels: Tensor, anchor: Tensor, *, of_classes_only: bool) -> Tensor:
    """The extremes [4 or 2, b] of the anchors [b], from all distances."""
    x = _deciding(x)
    d = exact_distances(x[anchor], x)
    masks = _left_out(labels[anchor, None] == labels, anchor)
    pairs = zip(_wanted(_SIGNS, of_classes_only), _wanted(masks, of_classes_only), strict=True)
    return torch.stack([(sign * d).masked_fill_(mask, torch.inf).argmin(dim=1) for sign, mask in pairs])


def _densely(x: Tensor, labels: Tensor, anchors: int | None, of_classes_only: bool) -> _Found:
    """The same for few embeddings: all entries of all rows at once, in few operations."""
    same = labels[:anchors, None] == labels
    anchor = _valid(same.sum(dim=1), len(x))
    if not len(anchor):
        return anchor, anchor.new_empty(len(_wanted(_SIGNS, of_classes_only)), 0)
    centred = x - x.mean(dim=0)
    norms = centred.square().sum(dim=1)
    largest = norms.max()
    if not _fits(largest):
        return anchor, _exactly(x, labels, anchor, of_classes_only=of_classes_only)
    own, own_norms = centred, norms
    if len(anchor) < len(x):
        own, own_norms, same = (each.index_select(0, anchor) for each in (centred, norms, same))
    signs = x.new_tensor(_wanted(_SIGNS, of_classes_only))
    keys = signs[:, None, None] * matmul(own, -2 * centred, norms)
    for key, left_out in zip(keys, _wanted(_left_out(same, anchor), of_classes_only), strict=True):
        key.masked_fill_(left_out, torch.inf)
    slack = _rounding(x) * (own_norms.sqrt() + largest.sqrt()).square()
    near = keys <= keys.amin(dim=2, keepdim=True).add_(slack[:, None])
    row, column = near.flatten(0, 1).nonzero().unbind(1)
    if len(row) > _MANY * len(keys) * len(anchor):
        return anchor, _exactly(x, labels, anchor, of_classes_only=of_classes_only)
    return anchor, _decide(x, anchor, row, column, signs)


def _unread(x: Tensor, labels: Tensor, anchors: int | None, of_classes_only: bool, unsure: list[Tensor]) -> _Found:
    """The same where the host waits for what it reads: `_densely` in blocks of rows, with lists of fixed length."""
    _, own, sizes = on_host(labels).unique(return_inverse=True, return_counts=True)
    anchor = to_device(_valid(sizes[own[:anchors]], len(x)), x.device)
    signs = to_device(torch.tensor(_wanted(_SIGNS, of_classes_only), dtype=x.dtype), x.device)
    if not len(anchor):
        return anchor, anchor.new_empty(len(signs), 0)
    centred = x - x.mean(dim=0)
    norms = centred.square().sum(dim=1)
    largest = norms.max()
    low, high = _limits(x.dtype)
    unsure.append(~((largest > low) & (largest < high)))
    members = []
    for rows in row_blocks(x, anchor, 2 * len(signs)):
        keys = signs[:, None, None] * matmul(centred[rows], -2 * centred, norms)
        left_out = _left_out(labels[rows, None] == labels, rows)
        for key, mask in zip(keys, _wanted(left_out, of_classes_only), strict=True):
            key.masked_fill_(mask, torch.inf)
        slack = _rounding(x) * (norms[rows].sqrt() + largest.sqrt()).square()
        near = keys <= keys.amin(dim=2, keepdim=True).add_(slack[:, None])
        listed = few_places(near.flatten(0, 1), _ROOM * len(signs) * len(rows))
        members.append(_decide_listed(x, rows, listed, signs))
        unsure.append(listed.missed)
    return anchor, torch.cat(members, dim=1)


def _decide_listed(x: Tensor, anchor: Tensor, listed: Places, signs: Tensor) -> Tensor:
    """As `_decide`, of a list of fixed length."""
    row, column, own = listed.row, listed.column, anchor[listed.row % len(anchor)]
    parts = [
        torch.linalg.vector_norm(_deciding(x[own[i]]) - _deciding(x[column[i]]), dim=1) for i in pair_blocks(x, row)
    ]
    d = (signs[row // len(anchor)] * torch.cat(parts)).masked_fill_(~listed.real, torch.inf)
    least = d.new_full((len(signs) * len(anchor),), torch.inf).scatter_reduce_(0, row, d, "amin")
    # Of equals the lower index.
    column = column.masked_fill(~listed.real | (d > least[row]), len(x))
    chosen = torch.full_like(least, len(x), dtype=torch.int64).scatter_reduce_(0, row, column, "amin")
    return chosen.clamp_max_(len(x) - 1).view(len(signs), -1)  # beyond it only where a NaN has no place in the list


class _Proposals:
    """Finds the same as `_exactly`, in about the time of the matrix product."""

    def __init__(self, x: Tensor, labels: Tensor, sizes: Tensor, of_classes_only: bool) -> None:
        m = len(x)
        self.otherwise = functools.partial(_exactly, x, labels, of_classes_only=of_classes_only)
        self.given, self.of_classes_only = x, of_classes_only
        self.order = labels.argsort(stable=True)
        x = x[self.order]
        # Around its mean the batch has the smallest norms, and with them the smallest rounding errors.
        self.x = x - x.mean(dim=0)
        self.labels = labels[self.order]
        self.stop = sizes.cumsum(0)
        self.start = self.stop - sizes
        self.norms = self.x.square().sum(dim=1)
        self.largest = self.norms.max()
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(m, device=x.device)
        self.minus_twice = F.pad(-2 * self.x, (0, 0, 0, -m % _CHUNK))
        self.add = F.pad(self.norms, (0, -m % _CHUNK))

    def __call__(self, anchor: Tensor) -> Tensor:
        """The extremes [4 or 2, b] of the anchors [b], which come in the order of their classes."""
        m, own = len(self.x), self.place[anchor]
        low, high = int(self.start[self.labels[own[0]]]), int(self.stop[self.labels[own[-1]]])
        # The squared distances less what is the same in a row, |anchor|^2.
        key = matmul(self.x[own], self.minus_twice, self.add)
        slack = _rounding(self.x) * (self.norms[own].sqrt() + self.largest.sqrt()).square()
        rows = torch.arange(len(own), device=key.device)
        same = self.labels[own, None] == self.labels[None, low:high]
        other = ~same
        other[rows, own - low] = True
        band = (-key[:, low:high]).masked_fill_(other, torch.inf)
        positive = _near(band, band, slack, first=low)

        farthest = nearest = None
        if not self.of_classes_only:
            key[:, m:] = -torch.inf
            farthest = _near(key, _minima(key, -1), slack, -1)
        key[:, m:] = torch.inf
        key[rows, own] = torch.inf
        minima = _minima(key)
        if not self.of_classes_only:
            nearest = _near(key, minima, slack)
        key[:, low:high].masked_fill_(same, torch.inf)
        changed = slice(low // _CHUNK, -(-high // _CHUNK))
        minima[:, changed] = _minima(key[:, changed.start * _CHUNK : changed.stop * _CHUNK])
        negative = _near(key, minima, slack)

        proposed = _wanted((farthest, negative, positive, nearest), self.of_classes_only)
        found = [near for near in proposed if near is not None]
        if len(found) < len(proposed):
            return self.otherwise(anchor)  # too many members at nearly one distance
        row = torch.cat([near[0] + i * len(own) for i, near in enumerate(found)])
        column = self.order[torch.cat([near[1] for near in found])]
        signs = key.new_tensor(_wanted(_SIGNS, self.of_classes_only))
        return _decide(self.given, anchor, row, column, signs)


def _rounding(x: Tensor) -> float:
    # A product of d terms is off by d * eps / 2 * |a| |b| at most; twice that can swap two members.
    return (x.shape[1] + 4) * torch.finfo(x.dtype).eps


def _decide(x: Tensor, anchor: Tensor, row: Tensor, column: Tensor, signs: Tensor) -> Tensor:
    """The extremes [4 or 2, b] of the anchors [b] among the columns proposed for each, in rows of [4 or 2, b] flat."""
    chosen = torch.empty(len(signs) * len(anchor), dtype=torch.int64, device=x.device)
    chosen[row] = column
    if len(row) > len(chosen):
        several = (row.bincount(minlength=len(chosen))[row] > 1).nonzero()[:, 0]
        row, column = row[several], column[several]
        own = anchor[row % len(anchor)]
        parts = [
            torch.linalg.vector_norm(_deciding(x[own[i]]) - _deciding(x[column[i]]), dim=1) for i in pair_blocks(x, row)
        ]
        d = signs[row // len(anchor)] * torch.cat(parts)
        least = d.new_full((len(chosen),), torch.inf).scatter_reduce_(0, row, d, "amin")
        # Of equals the lower index.
        column = column.masked_fill(d > least[row], len(x))
        chosen.scatter_reduce_(0, row, column, "amin", include_self=False)
    return chosen.view(len(signs), -1)


def _minima(key: Tensor, sign: int = 1) -> Tensor:
    """The least entry of sign * key in every chunk of a row; without its place it takes a tenth of argmin's time."""
    chunks = key.view(len(key), -1, _CHUNK)
    return chunks.amin(dim=2) if sign > 0 else chunks.amax(dim=2).neg_()


def _near(key: Tensor, minima: Tensor, slack: Tensor, sign: int = 1, first: int = 0) -> tuple[Tensor, Tensor] | None:
    """(row, column) of the entries of sign * key within slack [b] of the least of their row; None if very many.

    By the minima of equal parts of the rows. Columns are counted from `first`.
    """
    limit = minima.amin(dim=1) + slack
    row, part = torch.nonzero(minima <= limit[:, None], as_tuple=True)
    if len(row) > _MANY * len(key):
        return None
    size = key.shape[1] // minima.shape[1]
    columns = part[:, None] * size + torch.arange(size, device=key.device)
    near, place = torch.nonzero(sign * key[row[:, None], columns] <= limit[row, None], as_tuple=True)
    return (row[near], columns[near, place] + first) if len(near) <= _MANY * len(key) else None
