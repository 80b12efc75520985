"""Losses that need all distances, as functions of some rows of the matrix of squared distances at a time."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dml.losses.building_blocks.pairwise import (
    block_entries,
    exact_distances,
    gradient_with_graph,
    is_small,
    pair_blocks,
    pull,
    row_blocks,
)
from dml.products import matmul


def rowwise(x: Tensor, terms: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """terms(rows, squared, *inputs) for all rows of the matrix of squared distances, block by block, with gradient.

    The backward pass makes each block anew, so neither pass holds more than a block beside O(m d).

    Args:
        x: embeddings [m, d].
        terms: (rows [b], squared distances [b, m] of those rows to all, *inputs) -> [b], differentiable by torch. The
            gradient of a distance that is 0 must be finite, and counts as 0.
        inputs: further tensors that get a gradient.

    Returns:
        [m]
    """
    return _Rowwise.apply(terms, x, *inputs)


def sum_over_rows(
    x: Tensor, terms: Callable[[Tensor, Tensor], Tensor], anchors: int | None = None, *, symmetric: bool = False
) -> Tensor:
    """The sum of rowwise(x, terms), with its gradient found along with it: each block is made once.

    Args:
        x: embeddings [m, d].
        terms: (rows [b], squared [b, m]) -> [b], as for `rowwise`.
        anchors: how many rows, the first ones; None: all.
        symmetric: the term of a pair is the same in the rows of both, which halves the work of the gradient.
    """
    wanted = torch.is_grad_enabled() and x.requires_grad
    return _SumOverRows.apply(x if wanted else x.detach(), terms, len(x) if anchors is None else anchors, symmetric)


def sorted_rows(squared: Tensor) -> tuple[Tensor, Tensor]:
    """Each row [m] of distances, none below 0, in ascending order, and where its entries stood; both [b, m]."""
    if squared.device.type != "cpu" or squared.dtype != torch.float32:
        values, order = squared.sort(dim=1, stable=True)
        return values, order
    # Numpy sorts whole numbers ten times faster than torch sorts with indices. The bits of floats that are not negative
    # have the order of the floats; the index below them makes the order stable and comes along.
    keys = squared.contiguous().view(torch.int32).long() << 32 | torch.arange(squared.shape[1])
    keys.numpy().sort(axis=1)
    halves = keys.view(torch.int32).unflatten(1, (-1, 2))
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    return halves[..., high].contiguous().view(torch.float32), halves[..., low].long()


def first_of_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of the true entries of each row, as many places [b, n] as the fullest row has, and which are real."""
    counts = mask.sum(dim=1)
    real = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]
    columns = torch.zeros(real.shape, dtype=torch.int64, device=mask.device)
    columns[real] = mask.nonzero()[:, 1]
    return columns, real


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Callable[..., Tensor], x: Tensor, *inputs: Tensor) -> Tensor:
        ctx.terms = terms
        ctx.save_for_backward(x, *inputs)
        return torch.cat([terms(block.rows, block.squared, *inputs) for block in _blocks(x)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return None, *gradient_with_graph(_plainly(ctx.terms), ctx.saved_tensors, gradient)
        x, *inputs = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        into, sums = torch.zeros_like(x), [torch.zeros_like(each) for each in inputs]
        for block in _blocks(x):
            squared = block.squared.requires_grad_()
            with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
                value = ctx.terms(block.rows, squared, *inputs)
            weight, *others = torch.autograd.grad(value, [squared, *inputs], gradient[block.rows])
            for total, other in zip(sums, others, strict=True):
                total += other
            block.pull(into, weight)
        return None, into, *sums


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, terms: Callable[..., Tensor], anchors: int, symmetric: bool) -> Tensor:
        total, into = x.new_zeros(()), torch.zeros_like(x)
        for block in _blocks(x, anchors):
            squared = block.squared.requires_grad_(ctx.needs_input_grad[0])
            with torch.set_grad_enabled(squared.requires_grad):
                value = terms(block.rows, squared).sum()
            total += value.detach()
            if squared.requires_grad:
                block.pull(into, *torch.autograd.grad(value, squared), symmetric=symmetric)
        ctx.terms, ctx.anchors = terms, anchors
        ctx.save_for_backward(x, into)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, into = ctx.saved_tensors
        if torch.is_grad_enabled():
            by_rows = _plainly(ctx.terms, ctx.anchors)
            return *gradient_with_graph(lambda x: by_rows(x).sum(), [x], gradient), None, None, None
        return gradient * into, None, None, None


def _plainly(terms: Callable[..., Tensor], anchors: int | None = None) -> Callable[..., Tensor]:
    """terms of all rows, [m], as a function of x and further inputs that torch can differentiate again."""

    def by_rows(x: Tensor, *inputs: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            blocks = row_blocks(x, torch.arange(len(x), device=x.device)[:anchors])
            parts = [terms(rows, (x[rows, None] - x).square().sum(dim=2), *inputs) for rows in blocks]
        return torch.cat(parts)

    return by_rows


class _Block(NamedTuple):
    """Some rows of the matrix of squared distances, and the entries that were computed from differences."""

    x: Tensor
    centred: Tensor
    columns: Tensor  # centred transposed, [d, m]
    rows: Tensor
    squared: Tensor
    near: tuple[Tensor, Tensor] | None  # None: all of them

    def pull(self, into: Tensor, weight: Tensor, *, symmetric: bool = False) -> None:
        """Add to `into` [m, d] the gradient that the weights [b, m] of the squared distances have.

        Each adds 2 weight_ij (x_i - x_j) to row i and takes it from row j; if symmetric, the row i gets both, from here
        and from what j's row would take from it.
        """
        x, centred, rows = self.x, self.centred, self.rows
        weight = weight * (4 if symmetric else 2)
        if self.near is None:
            # On a GPU the gradient of cdist holds a difference for each of its distances.
            step = max(1, block_entries(x) // x.numel()) if x.is_cuda else len(rows)
            for part, pulls in zip(rows.split(step), weight.split(step), strict=True):
                with torch.enable_grad():
                    ends = x[part].requires_grad_(), x.clone().requires_grad_()
                    d = exact_distances(*ends)
                first, second = torch.autograd.grad(d, ends, pulls * d)
                into[part] += first
                if not symmetric:
                    into += second
            return
        row, column = self.near
        near = weight[row, column]
        weight[row, column] = 0
        pull(into, x, rows[row], column[None], near[None], both=not symmetric)
        # What is left has x_i and x_j far enough apart to be taken separately.
        into[rows] += weight.sum(dim=1)[:, None] * centred[rows] - matmul(weight, self.columns)
        if not symmetric:
            into += weight.sum(dim=0)[:, None] * centred - matmul(weight.T, centred[rows].T)


@torch.no_grad()
def _blocks(x: Tensor, anchors: int | None = None) -> Iterator[_Block]:
    centred = x - x.mean(dim=0)  # has the smallest norms, and with them the smallest rounding errors
    columns = centred.T.contiguous()
    minus_twice = -2 * centred
    norms = centred.square().sum(dim=1)
    # The product's error is some eps of the norms: below this share of them a squared distance would lose digits.
    share = 1e-2 if x.dtype == torch.float32 else 1e-4
    small = is_small(x)
    for rows in row_blocks(x, torch.arange(len(x), device=x.device)[:anchors]):
        if not small:
            squared = matmul(centred[rows], minus_twice, norms).add_(norms[rows, None])
            i, j = torch.nonzero(squared < share * norms[rows, None], as_tuple=True)
            if len(i) * 16 <= squared.numel():
                for part in pair_blocks(x, i):
                    squared[i[part], j[part]] = (x[rows[i[part]]] - x[j[part]]).square().sum(dim=1)
                yield _Block(x, centred, columns, rows, squared, (i, j))
                continue
        yield _Block(x, centred, columns, rows, exact_distances(x[rows], x).square(), None)
