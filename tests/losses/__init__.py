"""The batches on which all losses are tested, and what the tests do with a loss."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """Class sizes, embedding dimension and scale; `twins` are samples that get the same embedding.

    On a grid the coordinates are whole numbers, so that many distances are equal.
    Sample numbers count within the labels sorted by class: of sizes (3, 2), samples 0 to 2 are class 0.
    """

    sizes: tuple[int, ...]
    dim: int
    scale: float = 1.0
    twins: tuple[int, ...] = ()
    grid: bool = False

    def make(self, seed: int) -> tuple[Tensor, Tensor]:
        """Shuffled labels with normally distributed embeddings in float64."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.tensor([label for label, size in enumerate(self.sizes) for _ in range(size)])
        embeddings = torch.randn(len(labels), self.dim, generator=generator, dtype=torch.float64) * self.scale
        embeddings[list(self.twins)] = embeddings[list(self.twins[:1])]
        if self.grid:
            embeddings = embeddings.round()
        order = torch.randperm(len(labels), generator=generator)
        return embeddings[order], labels[order]

    def draws(self) -> list[tuple[Tensor, Tensor]]:
        """A few batches of this kind."""
        return [self.make(seed) for seed in range(3)]


SMOOTH = {
    "unequal": Batch((9, 5, 3, 3, 2, 2), 8),
    "tiny_scale": Batch((4, 3, 2), 3, 0.1),
    "huge_scale": Batch((4, 3, 2), 5, 10.0),
    "one_dimension": Batch((3, 2, 3), 1),
    "singletons": Batch((1, 3, 2, 1, 1), 4),
    "one_class": Batch((5,), 2),
    "all_singletons": Batch((1, 1, 1, 1), 2, 0.3),
    "two_alike": Batch((2,), 3),
    "two_different": Batch((1, 1), 3, 0.2),
    "three_samples": Batch((2, 1), 2),
}
# Here distances are zero or equal, where a derivative may not exist: it only has to be finite.
TIED = {
    "twins_alike": Batch((3, 3, 2), 3, 1.0, (1, 2)),
    "twins_different": Batch((3, 3, 2), 3, 1.0, (2, 3)),
    "twins_only": Batch((1, 1), 3, 1.0, (0, 1)),
    "grid": Batch((9, 6, 4, 3, 2), 3, 1.5, grid=True),
    "collapsed": Batch((3, 2, 1), 2, 1.0, (0, 1, 2, 3, 4, 5)),
}


def value_and_gradient(
    loss: nn.Module, embeddings: Tensor, labels: Tensor, autocast: bool = False
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient. Only the forward pass runs under autocast, as in every training loop."""
    leaf = embeddings.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(leaf, labels)
    value.backward()
    assert value.shape == () and leaf.grad is not None
    return value.detach(), leaf.grad


def assert_slopes_close(
    gradient: Tensor, function: Callable[[Tensor], Tensor], point: Tensor, step: float, tolerance: float = 1e-5
) -> None:
    """Compare a gradient with central differences in a few random directions: an error has a share in each of them."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        direction = torch.randn(point.shape, generator=generator, dtype=torch.float64)
        up, down = (function(point + sign * step * direction) for sign in (1, -1))
        expected = (up - down) / (2 * step)
        allowed = tolerance * (float(gradient.norm()) + 1e-3)
        assert abs((gradient * direction).sum() - expected) <= allowed, ((gradient * direction).sum(), expected)


def assert_gradient_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Compare with the largest entry as the measure: finite differences are no better in the small ones."""
    scale = expected.abs().max().item() + 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)
