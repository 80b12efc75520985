"""What all losses over a batch share: distances, masks without self, extremes of a row, full precision.

Shapes: m embeddings of d dimensions in a batch; `x` is [m, d], a mask or distance matrix [m, m] with anchors as rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 1024  # rows of the distance matrix held at a time while mining


def full_precision(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a loss's `forward(self, embeddings, labels)`: check shapes, leave autocast, compute in float32 at least.

    Distances of nearly equal embeddings cancel: in bfloat16 the mined extremes are often the wrong ones.

    Raises:
        ValueError: embeddings are not [m, d] or labels not [m].
    """

    @functools.wraps(forward)
    def wrapper(self: Any, embeddings: Tensor, labels: Tensor) -> Tensor:
        if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"a loss takes embeddings [m, d] and labels [m], not {list(embeddings.shape)} and {list(labels.shape)}"
            )
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            embeddings = embeddings.float()
        with torch.autocast(embeddings.device.type, enabled=False):
            return forward(self, embeddings, labels)

    return wrapper


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raise the one-line error of a user's mistake: the config key, what it is, what would be right.

    Raises:
        ValueError: `ok` is false.
    """
    if not ok:
        raise ValueError(f"{key}={value} is not possible: it must be {wanted}")


def distances(x: Tensor) -> Tensor:
    """Euclidean distances D [m, m] of x [m, d], exact for near duplicates; the gradient at distance 0 is 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def positive_mask(labels: Tensor) -> Tensor:
    """Mask [m, m] of the pairs of one class, self excluded (P_i of eq. 5)."""
    same = labels[:, None] == labels[None, :]
    return same.fill_diagonal_(False)


def negative_mask(labels: Tensor) -> Tensor:
    """Mask [m, m] of the pairs of two classes (N_i of eq. 5)."""
    return labels[:, None] != labels[None, :]


def zero(x: Tensor) -> Tensor:
    """A zero that back-propagates zeros into x: the loss of a batch without a valid anchor or pair.

    NaN stays NaN, so a broken network is not taken for a batch that has nothing to teach.
    """
    return (x * 0).sum()


class Extremes(NamedTuple):
    """For each valid anchor, the batch indices [v] of the four members that eq. 6 and 7 ask for."""

    anchor: Tensor
    farthest_positive: Tensor
    nearest_negative: Tensor
    farthest: Tensor
    nearest: Tensor


@torch.no_grad()
def extremes(x: Tensor, labels: Tensor) -> Extremes:
    """Find the extremes of each row of the distance matrix, without a graph, in blocks of rows.

    A valid anchor has a positive and a negative in the batch. Ties go to the lower index.
    O(m^2 d) time, O(block * m) memory: the matrix is never whole.
    """
    members = torch.arange(len(x), device=x.device)
    rows: list[tuple[Tensor, ...]] = [(members[:0],) * 5]  # what an empty batch finds
    for start in range(0, len(x), _BLOCK):
        anchor = members[start : start + _BLOCK]
        d = torch.cdist(x[anchor], x, compute_mode="donot_use_mm_for_euclid_dist")
        same = labels[anchor, None] == labels[None, :]
        self_ = anchor[:, None] == members[None, :]
        positive = same & ~self_
        # Valid by the labels, not by the distances: a NaN or an overflow must reach the loss, so that the run stops.
        valid = positive.any(dim=1) & ~same.all(dim=1)
        found = (
            anchor,
            d.masked_fill(~positive, -torch.inf).argmax(dim=1),
            d.masked_fill(same, torch.inf).argmin(dim=1),
            d.masked_fill(self_, -torch.inf).argmax(dim=1),
            d.masked_fill(self_, torch.inf).argmin(dim=1),
        )
        rows.append(tuple(index[valid] for index in found))
    return Extremes(*(torch.cat(column) for column in zip(*rows, strict=True)))


def distance_to(x: Tensor, anchor: Tensor, other: Tensor) -> Tensor:
    """Distances [v] with gradient of x[anchor] to x[other]; the gradient at distance 0 is 0. O(v d) memory."""
    return torch.linalg.vector_norm(x[anchor] - x[other], dim=1)
