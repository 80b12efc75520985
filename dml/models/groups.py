"""An embedding in groups of columns, each a learner of its own, for BIER and A-BIER and for `loss=per_group`."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn
from torch.nn import functional as F

from dml.models.embedder import Embedder, Spread, full_precision

Sizes = Annotated[list[Annotated[int, Gt(0)]], MinLen(1)]
Weights = Annotated[list[Annotated[float, Gt(0)]], MinLen(1)]


class GroupedEmbedder(Embedder):
    """Backbone and one linear layer whose columns are groups (Opitz et al. 2017); joined, each has a length of its own.

    Args:
        backbone, dim, freeze_bn, freeze, pool, features, mean, std, checkpoint_path: as of Embedder.
        normalize: bring each group's columns to length 1 in training.
        sizes: widths of the groups, which add up to dim; those of BIER, the largest last, by default.
        weights: of the groups, that their unit vectors are multiplied by for search; None: the group's share of dim, as
            the authors of BIER do.
        detached: give a copy of every group behind them, made without bias from features without gradient: for A-BIER's
            adversary, whose gradient then reaches the layer and not the backbone.
        unit_weights: weight of the penalty by which A-BIER holds the weights of each feature to each group to length 1;
            5 there (its 5e-5 times 1e5).

    Raises:
        ValueError: sizes do not add up to dim, or weights are not as many; names the config key.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        dim: Annotated[int, Gt(0)],
        freeze_bn: bool = False,
        freeze: Literal["backbone"] | None = None,
        normalize: bool = False,
        pool: str | None = None,
        features: Annotated[int, Gt(0)] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[Spread, Spread, Spread] | None = None,
        checkpoint_path: str | None = None,
        sizes: Sizes = (96, 160, 256),  # type: ignore[assignment]
        weights: Weights | None = None,
        detached: bool = False,
        unit_weights: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        check_groups(sizes, dim, weights)
        super().__init__(
            backbone=backbone,
            dim=dim,
            freeze_bn=freeze_bn,
            freeze=freeze,
            normalize=normalize,
            pool=pool,
            features=features,
            mean=mean,
            std=std,
            checkpoint_path=checkpoint_path,
        )
        self.sizes = tuple(sizes)
        self.weights = tuple(size / dim for size in sizes) if weights is None else tuple(weights)
        self.detached, self.unit_weights = detached, unit_weights
        self.groups = self.sizes * (2 if detached else 1)

    def embedded(self, features: Tensor) -> Tensor:
        """Features [B, C] -> columns [B, sum(groups)]."""
        with full_precision(features):
            features = features.to(self.head.weight.dtype)
            columns = self.head(features)
            if self.normalize:
                columns = joined(columns, self.sizes, (1.0,) * len(self.sizes))
            if self.detached:
                columns = torch.cat([columns, F.linear(features.detach(), self.head.weight)], dim=1)
        return columns

    def join(self, columns: Tensor) -> Tensor:
        """Columns [B, sum(groups)] -> embeddings [B, dim] to search with: each group's unit vector times its weight."""
        return joined(columns, self.sizes, self.weights)

    def penalty(self) -> Tensor:
        """How far each feature's weights w to a group are from length 1: mean of (|w|^2 - 1)^2, summed over groups."""
        if not self.unit_weights:
            return self.head.weight.new_zeros(())
        parts = self.head.weight.split(list(self.sizes))
        return self.unit_weights * sum((part.square().sum(dim=0) - 1).square().mean() for part in parts)


def joined(columns: Tensor, sizes: Sequence[int], weights: Sequence[float]) -> Tensor:
    """Of each group of columns [B, sum(sizes)] the unit vector times its weight; what stands behind them is dropped."""
    parts = columns[:, : sum(sizes)].split(list(sizes), dim=1)
    return torch.cat([weight * F.normalize(part, dim=1) for part, weight in zip(parts, weights, strict=True)], dim=1)


def check_groups(sizes: Sequence[int], dim: int, weights: Sequence[float] | None) -> None:
    """Refuse widths that do not add up to the embedding's.

    Raises:
        ValueError: they do not, or there are not as many weights; names the config key.
    """
    if sum(sizes) != dim:
        raise ValueError(f"embedder.sizes={list(sizes)} add up to {sum(sizes)}, which is not embedder.dim={dim}")
    if weights is not None and len(weights) != len(sizes):
        raise ValueError(
            f"embedder.weights={list(weights)} is not possible: it must be one for each of {len(sizes)} groups"
        )
