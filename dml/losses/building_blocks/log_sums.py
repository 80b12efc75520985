"""log sum e^f(v) over all but a few entries of rows, in few passes over them: where many losses spend their time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dml.losses.building_blocks.pairwise import gradient_with_graph

Entrywise = Callable[[Tensor], Tensor]
_PER_BIT = 1 / math.log(2)
Slope = Callable[[Tensor], Tensor | float]


def log_sum_but(values: Tensor, without: Tensor, exponent: Entrywise, slope: Slope) -> Tensor:
    """log sum e^exponent(v) over the values [b, m] of each row but those at the places `without` [b, k]: [b].

    Args:
        values: [b, m].
        without: columns; at least one in each row is not among them, or its sum is -inf.
        exponent: of each value, a new tensor. Values that are to be left out too are -inf.
        slope: the derivative of the exponent at each value, or at all of them.
    """
    return _LogSum.apply(values, without, exponent, slope)


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, without: Tensor, exponent: Entrywise, slope: Slope) -> Tensor:
        shares = exponent(values).scatter_(1, without, -torch.inf)
        top = shares.amax(dim=1, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0)
        shares.sub_(top).mul_(_PER_BIT).exp2_()  # of which a CPU makes four in the time of one e^x
        total = shares.sum(dim=1, keepdim=True)
        ctx.given = exponent, slope
        ctx.save_for_backward(values, without, shares, total)
        return (total.log() + top)[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, without, shares, total = ctx.saved_tensors
        exponent, slope = ctx.given
        if torch.is_grad_enabled():

            def plain(values: Tensor) -> Tensor:
                return exponent(values).scatter(1, without, -torch.inf).logsumexp(dim=1)

            return *gradient_with_graph(plain, [values], gradient), None, None, None
        # The largest share is 1; where there is none, so is the gradient.
        return (shares * (gradient[:, None] / total.clamp_min(1))).mul_(slope(values)), None, None, None
