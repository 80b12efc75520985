"""Histograms whose entries are shared between the two nearest nodes, with gradient: scatter-adds, O(entries) time."""

from typing import Any

import torch
from torch import Tensor


def histogram(places: Tensor, mask: Tensor, nodes: int) -> Tensor:
    """The true entries of places [b, k], in units of the distance of two nodes from the first: their shares [nodes].

    What lies outside of the nodes is extrapolated by the two at the end. In float64, as slopes are differences of
    nodes.
    """
    return _Histogram.apply(places, mask, nodes)


class _Histogram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, places: Tensor, mask: Tensor, nodes: int) -> Tensor:
        low = places.floor().nan_to_num_(0).clamp_(0, nodes - 2)
        upper = torch.where(mask, places - low, 0).double().flatten()
        low = low.long()
        ctx.save_for_backward(low, mask)
        ctx.dtype = places.dtype
        of_upper = torch.bincount(low.flatten(), upper, minlength=nodes)
        found = torch.bincount(low.flatten(), mask.double().flatten(), minlength=nodes) - of_upper
        found[1:] += of_upper[:-1]
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low, mask = ctx.saved_tensors
        return torch.where(mask, gradient.diff().to(ctx.dtype)[low], 0), None, None
