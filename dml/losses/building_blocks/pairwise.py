"""Distances of a batch with gradient, masks without self, blocks of rows.

Shapes: m embeddings of d dimensions in a batch; `x` is [m, d], a mask or distance matrix [m, m] with anchors as rows.

The distance matrix is never whole. A loss that needs a few entries of each row finds them with extremes.py and computes
just those with `distance_to`. A loss that needs all of them is a function of some rows at a time, and rowwise.py puts
value and gradient together. Both make the squared distances |a|^2 + |b|^2 - 2 ab of a block of rows by one product and
compute anew, from differences, whatever that product rounds too much to decide.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_BLOCK = {"cpu": 2**21, "cuda": 2**26}  # entries of the distance matrix held at a time; on a CPU they stay in its cache
_SMALL = 2**19  # coordinate differences that are computed sooner than a product is mended


def masks(labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [b, m] of the positives (P_i of eq. 5, self excluded) and the negatives (N_i) of some rows [b]."""
    same = labels[rows, None] == labels[None, :]
    positive = same.clone()
    positive[torch.arange(len(rows), device=rows.device), rows] = False
    return positive, ~same


def exact_distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances [n, p] from differences, exact for near duplicates; the gradient at distance 0 is 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def row_blocks(x: Tensor, members: Tensor, share: int = 1) -> Iterator[Tensor]:
    """The members [v] in blocks whose rows of an [m, m] matrix, m = len(x), fit into _BLOCK / share entries."""
    if len(members):
        yield from members.split(max(1, block_entries(x) // share // len(x)))


def block_entries(x: Tensor) -> int:
    """How many entries of the distance matrix are held at a time."""
    entries = _BLOCK.get(x.device.type, 2**21)
    # Of very wide rows more: products of few rows take twice the time on a CPU.
    return entries * max(1, len(x) // 8192) if x.device.type == "cpu" else entries


def is_small(x: Tensor) -> bool:
    """Whether differences cost less than what a product needs around it."""
    return len(x) ** 2 * x.shape[1] <= _SMALL


def root(squared: Tensor) -> Tensor:
    """Distances of squared distances; the gradient at 0 is 0."""
    positive = squared > 0
    return torch.where(positive, squared, 1).sqrt().where(positive, squared)


def gradient_with_graph(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor
) -> list[Tensor | None]:
    """The gradient of formula(*inputs) by those inputs that need one, which can be differentiated again.

    The backward passes of our own functions keep no graph. Where one is wanted (`create_graph=True`; autograd then has
    gradients enabled) they hand their plain formula to this. It takes O(m^2 d) memory where all distances count.
    """
    # Views, as one input may be computed from another, whose gradient must not come through it.
    own = [each.view_as(each) for each in inputs]
    wanted = [each for each in own if each.requires_grad]
    found = iter(torch.autograd.grad(formula(*own), wanted, gradient, create_graph=True))
    return [next(found) if each.requires_grad else None for each in own]


class _DistanceTo(torch.autograd.Function):
    """Distances of pairs, whose backward pass keeps no differences but those of a single block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, others: Tensor) -> Tensor:
        d = torch.empty(others.shape, dtype=x.dtype, device=x.device)
        for part in pair_blocks(x, others.T):
            torch.linalg.vector_norm(differences(x, anchor[part], others[:, part]), dim=2, out=d[:, part])
        ctx.save_for_backward(x, anchor, others, d)
        return d

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, anchor, others, d = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(x: Tensor) -> Tensor:
                return root(differences(x, anchor, others).square().sum(dim=2))

            return *gradient_with_graph(plain, [x], gradient), None, None
        weight = (gradient / d).masked_fill_(d == 0, 0)
        # Differences are made anew: where they fit the cache that takes less time than to bring them back.
        return pull(torch.zeros_like(x), x, anchor, others, weight), None, None


def pair_blocks(x: Tensor, pairs: Tensor) -> Iterator[slice]:
    """Slices of the pairs [v] or [v, k] whose differences fit into _BLOCK entries."""
    step = max(1, block_entries(x) // 4 // (x.shape[1] * pairs[:1].numel() or 1))
    yield from (slice(start, start + step) for start in range(0, len(pairs), step))


def differences(x: Tensor, anchor: Tensor, others: Tensor) -> Tensor:
    """x[others] - x[anchor], [k, v, d]; index_select takes a quarter of the time of indexing on a CPU."""
    return x.index_select(0, others.flatten()).view(*others.shape, -1).sub_(x.index_select(0, anchor))


def pull(into: Tensor, x: Tensor, anchor: Tensor, others: Tensor, weight: Tensor, *, both: bool = True) -> Tensor:
    """Take weight [k, v] * (x[others] - x[anchor]) from rows `anchor` [v] of `into`; if both, add it to `others`."""
    for part in pair_blocks(x, others.T):
        pulls = differences(x, anchor[part], others[:, part]).mul_(weight[:, part, None])
        into.index_add_(0, anchor[part], pulls.sum(dim=0), alpha=-1)
        if both:
            into.index_add_(0, others[:, part].flatten(), pulls.flatten(0, 1))
    return into


def distance_to(x: Tensor, anchor: Tensor, others: Tensor) -> Tensor:
    """Distances [k, v] with gradient of x[anchor], [v, d], to x[others], [k, v, d].

    At distance 0 the gradient is 0, and so is a second derivative.

    O(k v + m d) memory.
    """
    return _DistanceTo.apply(x, anchor, others)
