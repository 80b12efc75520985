"""Histograms whose entries are shared between the two nearest nodes, with gradient: scatter-adds, O(entries) time."""

from typing import Any

import torch
from torch import Tensor

from dml.losses.building_blocks.host import reading_waits


def histogram(places: Tensor, mask: Tensor, nodes: int) -> Tensor:
    """The true entries of places [b, k], in units of the distance of two nodes from the first: their shares [nodes].

    What lies outside of the nodes is extrapolated by the two at the end. In float64, as slopes are differences of
    nodes.
    """
    return _Histogram.apply(places, mask, nodes)


def _count(places: Tensor, weights: Tensor, nodes: int) -> Tensor:
    if reading_waits(places.device):  # bincount reads the largest
        return weights.new_zeros(nodes).index_add(0, places, weights)
    return torch.bincount(places, weights, minlength=nodes)


class _Histogram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, places: Tensor, mask: Tensor, nodes: int) -> Tensor:
        low = places.floor().nan_to_num_(0).clamp_(0, nodes - 2)
        upper = torch.where(mask, places - low, 0).double().flatten()
        low = low.long()
        ctx.save_for_backward(low, mask)
        ctx.dtype = places.dtype
        of_upper = _count(low.flatten(), upper, nodes)
        found = _count(low.flatten(), mask.double().flatten(), nodes) - of_upper
        found[1:] += of_upper[:-1]
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low, mask = ctx.saved_tensors
        return torch.where(mask, gradient.diff().to(ctx.dtype)[low], 0), None, None
