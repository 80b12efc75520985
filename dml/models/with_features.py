"""An embedding with the features that it is made of beside it, for losses that teach it by what is larger than it."""

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.models.embedder import Embedder, Spread, full_precision


class EmbedderWithFeatures(Embedder):
    """Backbone and one linear layer; in training the backbone's features stand behind the embedding.

    Args:
        backbone, dim, freeze_bn, freeze, features, mean, std, checkpoint_path: as of Embedder.
        normalize: bring the embedding to length 1 in training.

    Raises:
        ValueError: as Embedder.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        dim: Annotated[int, Gt(0)],
        freeze_bn: bool = False,
        freeze: Literal["backbone"] | None = None,
        normalize: bool = False,
        features: Annotated[int, Gt(0)] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[Spread, Spread, Spread] | None = None,
        checkpoint_path: str | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            dim=dim,
            freeze_bn=freeze_bn,
            freeze=freeze,
            normalize=normalize,
            features=features,
            mean=mean,
            std=std,
            checkpoint_path=checkpoint_path,
        )
        self.groups = (dim, self.head.in_features)

    def embedded(self, features: Tensor) -> Tensor:
        """Features [B, C] -> columns [B, dim + C]."""
        with full_precision(features):
            features = features.to(self.head.weight.dtype)
            embeddings = self.head(features)
            return torch.cat([F.normalize(embeddings, dim=1) if self.normalize else embeddings, features], dim=1)

    def join(self, columns: Tensor) -> Tensor:
        """Columns [B, dim + C] -> embeddings [B, dim]."""
        return columns[:, : self.dim]
