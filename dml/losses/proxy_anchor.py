"""Proxy-Anchor loss, Kim, Kim, Cho and Kwak (2020), arXiv:2003.13911."""

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import log_one_plus_sum, softplus
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.host import on_host, to_device
from dml.losses.building_blocks.proxies import cosines_to, require_sizes


class ProxyAnchorLoss(nn.Module):
    """Proxies as anchors, and the embeddings of the batch as their positives and negatives, S cosines:

    1/|C+| sum_(c in C+) log(1 + sum_(i of c) e^(-a (S_ic - b))) + 1/C sum_c log(1 + sum_(i not of c) e^(a (S_ic + b))).

    C+ are the classes in the batch; the second mean is over all classes. Owns `proxies` [num_classes, embedding_dim],
    drawn from N(0, 2 / C); their norms do not count. Embeddings are normalised inside.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: C; labels are 0 .. C - 1. Filled in from the data.
        alpha: sharpness, > 0.
        margin: cosine from which a pair counts, on both sides of 0.

    Raises:
        ValueError: a size or alpha is not positive.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        alpha: Annotated[float, Gt(0)] = 32.0,
        margin: float = 0.1,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(alpha > 0, "loss.alpha", alpha, "greater than 0")
        self.alpha, self.margin = alpha, margin
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_dim) * math.sqrt(2 / num_classes))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only).
        """
        cosines = cosines_to(embeddings, self.proxies, labels)
        own = -self.alpha * (cosines.gather(1, labels[:, None])[:, 0] - self.margin)
        found = on_host(labels).unique(return_inverse=True)
        classes, place = (to_device(each, labels.device) for each in found)
        top = own.new_full((len(classes),), -torch.inf).scatter_reduce_(0, place, own.detach(), "amax")
        sums = torch.zeros_like(top).index_add(0, place, (own - top[place]).exp())
        others = (self.alpha * (cosines + self.margin)).scatter(1, labels[:, None], -torch.inf)
        return softplus(top + sums.log()).mean() + log_one_plus_sum(others, dim=0).mean()
