"""Normalised softmax, Zhai and Wu (2019), arXiv:1811.12649: classification by cosines."""

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.proxies import cosines_to, require_sizes


class NormalizedSoftmaxLoss(nn.Module):
    """Mean softmax cross entropy of S_ic / T, S the cosines of embeddings and class weights, without a bias.

    Owns `weight` [num_classes, embedding_dim], drawn from U(-1 / sqrt d, 1 / sqrt d); its norms do not count.
    Embeddings are normalised inside.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: number of training classes; labels are 0 .. num_classes - 1. Filled in from the data.
        temperature: T in the formula; the smaller, the sharper, > 0.

    Raises:
        ValueError: a size or temperature is not positive.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        temperature: Annotated[float, Gt(0)] = 0.05,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(temperature > 0, "loss.temperature", temperature, "greater than 0")
        self.temperature = temperature
        bound = 1 / math.sqrt(embedding_dim)
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim).uniform_(-bound, bound))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only).
        """
        return F.cross_entropy(cosines_to(embeddings, self.weight, labels) / self.temperature, labels)
