"""Losses that need all distances, as functions of some rows of the matrix of squared distances at a time."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dml.losses.building_blocks.distances import Distances
from dml.losses.building_blocks.host import Unsure, settled
from dml.losses.building_blocks.pairwise import gradient_with_graph, row_blocks


def rowwise(
    x: Tensor,
    terms: Callable[..., Tensor],
    *inputs: Tensor,
    rows: Tensor | None = None,
    share: int = 1,
) -> Tensor:
    """terms(rows, squared, *inputs) for rows of the matrix of squared distances, block by block, with gradient.

    The backward pass makes each block anew, so neither pass holds more than a block beside O(m d).

    Args:
        x: embeddings [m, d].
        terms: (rows [b], squared distances [b, m] of those rows to all, *inputs) -> [b, ...], differentiable by torch.
            The gradient of a distance that is 0 must be finite, and counts as 0.
        inputs: further tensors that get a gradient.
        rows: which rows [v], each once and in ascending order; None: all.
        share: how many numbers `terms` holds for each distance.

    Returns:
        [v, ...]; if `terms` returns [1, ...] of a block, one row for each block.
    """
    return settled(lambda unsure: _Rowwise.apply(terms, rows, share, unsure, x, *inputs), x.device)


def sum_over_rows(
    x: Tensor,
    terms: Callable[..., Tensor],
    *inputs: Tensor,
    rows: Tensor | None = None,
    share: int = 1,
) -> Tensor:
    """The sum of `rowwise` with the same arguments, with its gradient found along with it: each block is made once.

    Args:
        x: embeddings [m, d].
        terms: as for `rowwise`, but for [b] alone.
        inputs: further tensors that get a gradient.
        rows: which rows [v], each once and in ascending order; None: all.
        share: how many numbers `terms` holds for each distance.
    """
    wanted = torch.is_grad_enabled() and x.requires_grad
    x = x if wanted else x.detach()
    return settled(lambda unsure: _SumOverRows.apply(terms, rows, share, unsure, x, *inputs), x.device)


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


@torch.no_grad()
def active_triplets(
    values: Tensor, members: Tensor, real: Tensor, negative: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Of the triplets of each row with v_p - v_n + margin > 0: how they weigh each value, [b, m], and their number [b].

    The positives stand in the columns `members` [b, n], where `real`.

    The sum of these hinges is piecewise linear in the values [b, m], none below 0: how often each takes part in an
    active triplet is its weight. Counting needs the sorted rows, never a list of triplets.
    """
    negatives, _ = sorted_rows(values.masked_fill(~negative, torch.inf))
    # Active where v_n < v_p + margin: counted for its positive, then for its negative. The same sum on both sides: a
    # triplet at the margin must round the same way for both of its members.
    reach = (values.gather(1, members) + margin).masked_fill(~real, -torch.inf).sort(dim=1).values
    active_positives = reach.shape[1] - torch.searchsorted(reach, values.contiguous(), right=True)
    active_negatives = torch.searchsorted(negatives, values.gather(1, members) + margin) * real
    weight = (active_positives * -1.0).to(values.dtype).masked_fill_(~negative, 0)
    weight.scatter_add_(1, members, active_negatives.to(values.dtype))
    return weight, active_negatives.sum(dim=1).to(values.dtype)


_PART = 2**19  # distances whose terms are computed at a time on a CPU


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: Callable[..., Tensor],
        rows: Tensor | None,
        share: int,
        unsure: Unsure,
        x: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *inputs)
        ctx.given = terms, rows, share, unsure is not None
        matrix = Distances(x, rows, share, unsure)
        parts = (part for block in matrix.blocks() for part in matrix.parts(block))
        return torch.cat([terms(own, squared, *inputs) for own, squared in parts])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        terms, rows, share, listed = ctx.given
        if torch.is_grad_enabled():
            return None, None, None, None, *gradient_with_graph(_plainly(terms, rows), ctx.saved_tensors, gradient)
        x, *inputs = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        # The lists are those of the forward pass, and were long enough.
        matrix = Distances(x.detach(), rows, share, [] if listed else None)
        sums, start = [torch.zeros_like(each) for each in inputs], 0
        for block in matrix.blocks():
            for own, part in matrix.parts(block):
                squared = part.detach().requires_grad_()
                with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
                    value = terms(own, squared, *inputs)
                weight, *others = torch.autograd.grad(value, [squared, *inputs], gradient[start : start + len(value)])
                part.copy_(weight)
                start += len(value)
                for total, other in zip(sums, others, strict=True):
                    total += other
            matrix.pull(block)
        return None, None, None, None, matrix.gradient(), *sums


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: Callable[..., Tensor],
        rows: Tensor | None,
        share: int,
        unsure: Unsure,
        x: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[4]
        own = [each.detach().requires_grad_(wanted) for each in inputs]
        total, matrix = x.new_zeros(()), Distances(x, rows, share, unsure)
        sums = [torch.zeros_like(each) for each in inputs]
        for block in matrix.blocks():
            for of_rows, part in matrix.parts(block):
                squared = part.detach().requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    value = terms(of_rows, squared, *own).sum()
                total += value.detach()
                if wanted:
                    weight, *others = torch.autograd.grad(value, [squared, *own])
                    part.copy_(weight)
                    for each, other in zip(sums, others, strict=True):
                        each += other
            if wanted:
                matrix.pull(block)
        ctx.given = terms, rows
        ctx.inputs = len(inputs)
        ctx.save_for_backward(x, *inputs, matrix.gradient(), *sums)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given, found = ctx.saved_tensors[: 1 + ctx.inputs], ctx.saved_tensors[1 + ctx.inputs :]
        if torch.is_grad_enabled():
            by_rows = _plainly(*ctx.given)
            own = gradient_with_graph(lambda *each: by_rows(*each).sum(), given, gradient)
            return None, None, None, None, *own
        return None, None, None, None, *(gradient * each for each in found)


def _plainly(terms: Callable[..., Tensor], rows: Tensor | None) -> Callable[..., Tensor]:
    """terms of all rows as a function of x and further inputs that torch can differentiate again."""

    def by_rows(x: Tensor, *inputs: Tensor) -> Tensor:
        members = torch.arange(len(x), device=x.device) if rows is None else rows
        with torch.autocast(x.device.type, enabled=False):
            parts = [terms(own, (x[own, None] - x).square().sum(dim=2), *inputs) for own in row_blocks(x, members)]
        return torch.cat(parts)

    return by_rows
