"""Proxy-NCA, Movshovitz-Attias et al. (2017), arXiv:1703.07464, and Proxy-NCA++.

Teh, DeVries and Taylor (2020), arXiv:2004.01113.
"""

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.proxies import cosines_to, require_sizes


class ProxyNCALoss(nn.Module):
    """Mean of -log( e^(-s D^2(z_i, p_y)) / sum_c e^(-s D^2(z_i, p_c)) ), D distances to the proxies on the sphere.

    The sum below is over the other classes (Proxy-NCA; the loss can be negative), or over all (Proxy-NCA++). Owns
    `proxies` [num_classes, embedding_dim], drawn from N(0, 1 / d), so of norm 1 or so at any d; their norms do not
    count. Embeddings are normalised inside.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: number of training classes; labels are 0 .. num_classes - 1. Filled in from the data.
        scale: factor of the squared distances, > 0; 9 in Proxy-NCA++ ("temperature 1/9").
        include_positive: count the own class in the sum under the fraction line too.

    Raises:
        ValueError: a size or scale is not positive, or there is one class alone and it is not in the sum below.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        scale: Annotated[float, Gt(0)] = 1.0,
        include_positive: bool = False,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes, least=1 if include_positive else 2)
        require(scale > 0, "loss.scale", scale, "greater than 0")
        self.scale, self.include_positive = scale, include_positive
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_dim) / math.sqrt(embedding_dim))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only).
        """
        # -s D^2 = 2 s S less what is the same for all classes.
        logits = 2 * self.scale * cosines_to(embeddings, self.proxies, labels)
        if self.include_positive:
            return F.cross_entropy(logits, labels)
        own = logits.gather(1, labels[:, None])[:, 0]
        return (logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1) - own).mean()
