"""CosFace, Wang et al. (2018), arXiv:1801.09414: classification by cosines with an additive margin."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.proxies import cosines_to, require_sizes


class CosFaceLoss(nn.Module):
    """Mean softmax cross entropy of s S_ic, with S - margin in the place of the own class's cosine S.

    Owns `weight` [num_classes, embedding_dim], drawn from N(0, 0.01); its norms do not count. Embeddings are normalised
    inside.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: number of training classes; labels are 0 .. num_classes - 1. Filled in from the data.
        margin: taken from the cosine of the own class, 0 or greater.
        scale: s in the formula, > 0; 64 as in the paper, 16 to 30 for a hundred classes.

    Raises:
        ValueError: a size or scale is not positive, or margin is negative.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        margin: Annotated[float, Ge(0)] = 0.35,
        scale: Annotated[float, Gt(0)] = 64.0,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(margin >= 0, "loss.margin", margin, "0 or greater")
        require(scale > 0, "loss.scale", scale, "greater than 0")
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(0.01 * torch.randn(num_classes, embedding_dim))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only).
        """
        cosines = cosines_to(embeddings, self.weight, labels)
        own = cosines.gather(1, labels[:, None])
        return F.cross_entropy(self.scale * cosines.scatter(1, labels[:, None], own - self.margin), labels)
