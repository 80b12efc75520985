"""The only file that speaks torch.distributed. Without a process group every function is the identity."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather_rows(x: Tensor) -> list[Tensor]:
    """The parts [b_r, ...] of all ranks, in the order of ranks; the parts may differ in length."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    longest = int(torch.stack(sizes).max())
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = _gather_rows(x)
        ctx.start = sum(len(part) for part in parts[: dist.get_rank()])
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank computes the same loss of the whole batch, so the gradient of its own rows is already complete.
        # DDP will average over the ranks what each derives from its own rows, where one process sums: hence the
        # factor. Weights of the loss itself get the full gradient on every rank, and their average is right as it is.
        return gradient[ctx.start : ctx.start + ctx.rows] * dist.get_world_size()


def gather_batch(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's embeddings [b, d] and labels [b] -> those of the global batch [m, d], [m], with gradient."""
    if not _distributed():
        return embeddings, labels
    return _GatherWithGradient.apply(embeddings), torch.cat(_gather_rows(labels))


def gather_rows(x: Tensor) -> Tensor:
    """Rows [b, ...] of all ranks in the order of ranks, without gradient."""
    return torch.cat(_gather_rows(x)) if _distributed() else x


def processes() -> tuple[int, int]:
    """This process and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)


def add_over_ranks(values: np.ndarray, device: torch.device) -> np.ndarray:
    """The sum of an array of all ranks, carried over the device that the ranks talk by."""
    if not _distributed():
        return values
    total = torch.as_tensor(values, device=device)
    dist.all_reduce(total)
    return total.numpy(force=True)


def first_said(value: str) -> str:
    """The value of whichever process of torchrun came first, on all of them, before there is a process group."""
    store = next(dist.rendezvous("env://"))[0]
    return store.compare_set("dml/first_said", "", value).decode()
