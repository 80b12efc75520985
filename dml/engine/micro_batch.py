"""Gradient caching (Gao et al. 2021): the loss of a whole batch, in the memory of a part of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def embed_in_chunks(embedder: nn.Module, images: Tensor, size: int) -> Tensor:
    """Embeddings [B, D] of images [B, ...], `size` images at a time, whose graphs are built when the gradient has come.

    The backward pass embeds each chunk again with the same random numbers, now with a graph, and hands the parameters
    the sum of all chunks' gradients at once: hooks on them, and so DistributedDataParallel, see one backward pass.
    What the first pass wrote into buffers (the running statistics of batch norms) is written once. Batch norms in
    training mode take the statistics of a chunk; else the gradients are those of the whole batch.
    """
    parameters = [parameter for parameter in embedder.parameters() if parameter.requires_grad]
    return _InChunks.apply(embedder, images, size, *parameters)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedder: nn.Module, images: Tensor, size: int, *parameters: Tensor) -> Tensor:
        device = images.device.type
        ctx.embedder, ctx.chunks, ctx.parameters = embedder, images.split(size), parameters
        ctx.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.random, embeddings = [], []
        for chunk in ctx.chunks:
            ctx.random.append(_random_state(chunk.device))
            embeddings.append(embedder(chunk))
        return torch.cat(embeddings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        buffers = [(buffer, buffer.clone()) for buffer in ctx.embedder.buffers()]
        total: list[Tensor | None] = [None] * len(ctx.parameters)
        start = 0
        for chunk, random in zip(ctx.chunks, ctx.random, strict=True):
            with _as_before(chunk.device, random, *ctx.autocast), torch.enable_grad():
                embeddings = ctx.embedder(chunk)
            rows = gradient[start : start + len(chunk)]
            start += len(chunk)
            parts = torch.autograd.grad(embeddings, ctx.parameters, rows, allow_unused=True)
            # Never in place: two parameters may have been handed one gradient.
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, parts, strict=True)]
        for buffer, kept in buffers:
            buffer.copy_(kept)
        return None, None, None, *total


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _as_before(
    device: torch.device, random: tuple[Tensor, Tensor | None], autocast: bool, dtype: torch.dtype
) -> Iterator[None]:
    """The random numbers and the precision of the first pass; the random numbers of after it come back."""
    on_host, on_device = random
    with torch.random.fork_rng([] if on_device is None else [device]):
        torch.set_rng_state(on_host)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        with torch.autocast(device.type, dtype, enabled=autocast):
            yield
