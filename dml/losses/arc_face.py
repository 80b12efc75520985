"""ArcFace, Deng et al. (2019), arXiv:1801.07698: classification by cosines with a margin of the angle."""

import math
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.pairwise import root
from dml.losses.building_blocks.proxies import product, require_fit, require_sizes


class ArcFaceLoss(nn.Module):
    """Mean softmax cross entropy of s cos t_ic, with cos(t + margin) in the place of the own class's cos t.

    Where t + margin is beyond pi, cos t - margin sin(margin) takes its place, as in the authors' code. Owns `weight`
    [num_classes, embedding_dim], drawn from N(0, 0.01); its norms do not count. Embeddings are normalised inside.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: number of training classes; labels are 0 .. num_classes - 1. Filled in from the data.
        margin: added to the angle of the own class, in radians; from 0 to below pi.
        scale: s in the formula, > 0; 64 as in the paper, 16 to 30 for a hundred classes.

    Raises:
        ValueError: a size or scale is not positive, or margin is not from 0 to below pi.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        margin: Annotated[float, Interval(ge=0, lt=math.pi)] = 0.5,
        scale: Annotated[float, Gt(0)] = 64.0,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(0 <= margin < math.pi, "loss.margin", margin, "from 0 to below pi, in radians")
        require(scale > 0, "loss.scale", scale, "greater than 0")
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(0.01 * torch.randn(num_classes, embedding_dim))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only).
        """
        z, weight, m = unit(embeddings), unit(self.weight.to(embeddings.dtype)), self.margin
        require_fit(embeddings, labels, weight.shape[1], weight.shape[0])
        cosines = product(z, weight)
        own, weight_of = cosines.gather(1, labels[:, None]), weight[labels]
        # sin^2 = 1 - S^2 = (1 - S)(1 + S), from differences and sums: of S near 1 or -1 it would be rounding.
        square = (z - weight_of).square().sum(dim=1) * (z + weight_of).square().sum(dim=1) / 4
        short = z.detach().square().sum(dim=1) < 0.5  # no unit vector
        sine = root(torch.where(short, 1 - own[:, 0].square(), square))[:, None]
        beyond = own <= math.cos(math.pi - m)
        replaced = torch.where(beyond, own - m * math.sin(m), own * math.cos(m) - sine * math.sin(m))
        return F.cross_entropy(self.scale * cosines.scatter(1, labels[:, None], replaced), labels)
