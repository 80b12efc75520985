"""The matrix of squared distances in blocks of rows, and the way back from their gradient to that of the embeddings."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dml.losses.building_blocks.host import Unsure, few_places
from dml.losses.building_blocks.pairwise import (
    block_entries,
    exact_distances,
    is_small,
    pair_blocks,
    pull,
    row_blocks,
)
from dml.products import matmul

_FEW = 64  # entries of a row that are too small for a product's digits, for which a list of fixed length has room
_WAITING = 2**26  # entries of the whole matrix up to which weights wait for each other, a quarter of them at most
_WIDTH = 2048  # columns of which a product is made at a time on a CPU


class Block(NamedTuple):
    """Some rows of the matrix of squared distances."""

    rows: Tensor
    squared: Tensor
    near: tuple[Tensor, Tensor] | None  # entries that were computed from differences; None: all of them
    # Of a list of fixed length: which of it are such entries, and their mask.
    real: Tensor | None = None
    mask: Tensor | None = None


class Distances:
    """The matrix of squared distances in blocks of rows, and the gradient by x that their weights add up to.

    members: which rows, each once and in ascending order; None: all.
    unsure: small distances are listed without reading how many there are, and this gets whether some were left out.
    """

    def __init__(self, x: Tensor, members: Tensor | None, share: int, unsure: Unsure) -> None:
        self.x, self.share, self.unsure = x, share, unsure
        self.members = torch.arange(len(x), device=x.device) if members is None else members
        self.centred = x - x.mean(dim=0)  # has the smallest norms, and with them the smallest rounding errors
        # Of all blocks: what x_i gets by differences and as a row, what as a column, and its own share.
        self.into, self.apart = torch.zeros_like(x), x.new_zeros(len(x))
        self.across: Tensor | None = None
        # Where all rows come, a pair has a weight in two of them: the first waits for the second, and one product
        # does for both. By the first row of the second's block: the rows of the first's, and weights.
        self.mutual, self.start = len(self.members) == len(x) <= _WAITING**0.5, 0
        self.waiting: dict[int, list[tuple[slice, Tensor]]] = defaultdict(list)

    @torch.no_grad()
    def blocks(self) -> Iterator[Block]:
        """All rows asked for, a block at a time."""
        x, minus_twice = self.x, -2 * self.centred
        norms = self.centred.square().sum(dim=1)
        # The product's error is some eps of the norms: below this share of them a squared distance would lose digits.
        digits = 1e-2 if x.dtype == torch.float32 else 1e-4
        small = is_small(x)
        for rows in row_blocks(x, self.members):
            if not small:
                squared, limits = matmul(self.centred[rows], minus_twice, norms), digits * norms[rows, None]
                squared.add_(norms[rows, None]).scatter_(1, rows[:, None], torch.inf)
                if self.unsure is not None:
                    yield self._listed(rows, squared, squared < limits, self.unsure)
                    continue
                some = (squared.amin(dim=1) < limits[:, 0]).nonzero()[:, 0]
                i, j = torch.nonzero(squared[some] < limits[some], as_tuple=True)
                i = some[i]
                squared.scatter_(1, rows[:, None], 0)
                if len(i) * 16 <= squared.numel():
                    for part in pair_blocks(x, i):
                        squared[i[part], j[part]] = (x[rows[i[part]]] - x[j[part]]).square().sum(dim=1)
                    yield Block(rows, squared, (i, j))
                    continue
            yield Block(rows, exact_distances(x[rows], x).square(), None)

    def _listed(self, rows: Tensor, squared: Tensor, mask: Tensor, unsure: list[Tensor]) -> Block:
        """The block whose entries under the mask are computed from differences, as many as a list has room for."""
        x = self.x
        squared.scatter_(1, rows[:, None], 0)
        i, j, real, missed = few_places(mask, _FEW * len(rows))
        unsure.append(missed)
        for part in pair_blocks(x, i):  # where there is none, the first entry: exact too
            squared[i[part], j[part]] = (x[rows[i[part]]] - x[j[part]]).square().sum(dim=1)
        return Block(rows, squared, (i, j), real, mask)

    def parts(self, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of a block with their distances, so many that a CPU keeps what is made of them in its cache."""
        entries = block_entries(self.x) // (4 if self.x.device.type == "cpu" else 1)
        step = max(1, entries // self.share // len(self.x))
        yield from zip(block.rows.split(step), block.squared.split(step), strict=True)

    def pull(self, block: Block) -> None:
        """Add the gradient of the squared distances, in whose place their weights [b, m] stand now.

        Each adds 2 weight_ij (x_i - x_j) to row i and takes it from row j. Blocks come in their order.
        """
        rows, weight = block.rows, block.squared.mul_(2)
        start, self.start = self.start, self.start + len(rows)
        if block.near is None:
            self._pull_exactly(rows, weight)
            if not self.waiting[start]:
                return
            weight.zero_()
        else:
            self._pull_near(block, *block.near)
        # What is left has x_i and x_j far enough apart to be taken separately.
        weight.scatter_(1, rows[:, None], 0)
        both = weight.shape[1]  # columns whose rows get a gradient too
        if self.mutual:
            self._with_waiting(start, weight)
            both, own = start, weight[:, start : start + len(rows)].contiguous()
            self._pull_columns(rows, slice(start, start + len(rows)), own)
        # Parts of one width, as a heap that has held ever wider ones keeps the memory of all.
        step = _WIDTH if self.x.device.type == "cpu" else len(self.x)
        for columns in (slice(first, min(first + step, both)) for first in range(0, both, step)):
            part = weight[:, columns].contiguous()
            self._pull_columns(rows, columns, part)
            self.apart[columns] += part.sum(dim=0)
            # This way round takes less time on a CPU than the part transposed times the rows.
            if self.across is None:
                self.across = self.x.new_zeros(self.x.shape[1], len(self.x))
            self.across[:, columns] += matmul(self.centred[rows].T, part.T)

    def _pull_columns(self, rows: Tensor, columns: slice, weight: Tensor) -> None:
        self.apart[rows] += weight.sum(dim=1)
        self.into[rows] -= matmul(weight, self.centred[columns].T)

    def _with_waiting(self, start: int, weight: Tensor) -> None:
        """Add what waited to the weights of this block's columns and those before; those behind wait."""
        stop = start + len(weight)
        for rows, part in self.waiting.pop(start, ()):
            weight[:, rows] += part.T
        own = weight[:, start:stop]
        own.copy_(own + own.T)
        for later in range(stop, weight.shape[1], len(weight)):
            self.waiting[later].append((slice(start, stop), weight[:, later : later + len(weight)].clone()))

    def _pull_near(self, block: Block, row: Tensor, column: Tensor) -> None:
        """Those computed from differences, whose weights are 0 then."""
        rows, weight = block.rows, block.squared
        near = weight[row, column]
        if block.real is None or block.mask is None:
            weight[row, column] = 0
        else:
            near = torch.where(block.real, near, 0)
            weight.masked_fill_(block.mask, 0)
        pull(self.into, self.x, rows[row], column[None], near[None])

    def _pull_exactly(self, rows: Tensor, weight: Tensor) -> None:
        # On a GPU the gradient of cdist holds a difference for each of its distances.
        x = self.x
        step = max(1, block_entries(x) // x.numel()) if x.is_cuda else len(rows)
        for part, pulls in zip(rows.split(step), weight.split(step), strict=True):
            with torch.enable_grad():
                ends = x[part].requires_grad_(), x.clone().requires_grad_()
                d = exact_distances(*ends)
            first, second = torch.autograd.grad(d, ends, pulls * d)
            self.into[part] += first
            self.into += second

    def gradient(self) -> Tensor:
        """By x, of all blocks whose weights were pulled."""
        into = self.into.addcmul_(self.apart[:, None], self.centred)
        return into if self.across is None else into.sub_(self.across.T)
