"""Losses that own weights for the classes: their sizes, and products of a batch with all of them."""

from typing import Any

import torch
from torch import Tensor

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import require
from dml.products import matmul


def require_sizes(embedding_dim: int, num_classes: int, least: int = 1) -> None:
    """Refuse sizes that no weights can have.

    Raises:
        ValueError: embedding_dim is not positive, or there are fewer classes than `least`.
    """
    require(embedding_dim > 0, "loss.embedding_dim", embedding_dim, "greater than 0")
    require(num_classes >= least, "loss.num_classes", num_classes, f"{least} or greater")


def require_fit(embeddings: Tensor, labels: Tensor, embedding_dim: int, num_classes: int) -> None:
    """Refuse a batch that the weights are not for; labels are looked at on a CPU only, where that costs nothing.

    Raises:
        ValueError: embeddings are not of embedding_dim, or a label is no class.
    """
    given = embeddings.shape[1]
    require(given == embedding_dim, "loss.embedding_dim", embedding_dim, f"the embeddings' {given}")
    require_classes(labels, num_classes)


def require_classes(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are no class of 0 .. num_classes - 1; they are looked at on a CPU only.

    Raises:
        ValueError: one is none.
    """
    if labels.device.type == "cpu":
        low, high = (int(each) for each in labels.aminmax())
        wanted = f"above all labels, {low} to {high} here"
        require(low >= 0 and high < num_classes, "loss.num_classes", num_classes, wanted)


def cosines_to(embeddings: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
    """Cosines [m, C] of embeddings [m, d] and the weights [C, d] of the classes, with gradient.

    Raises:
        ValueError: as `require_fit`.
    """
    require_fit(embeddings, labels, weights.shape[1], weights.shape[0])
    return product(unit(embeddings), unit(weights.to(embeddings.dtype)))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] times b [p, k] transposed, [n, p], with gradient, in full float32 on the way there and back.

    Or a batch of such products, [c, n, k] and [c, p, k].
    """
    return _Product.apply(a, b)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return matmul(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        return (
            product(gradient, b.mT) if ctx.needs_input_grad[0] else None,
            product(gradient.mT, a.mT) if ctx.needs_input_grad[1] else None,
        )
