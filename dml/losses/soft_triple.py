"""SoftTriple loss, Qian et al. (2019), arXiv:1909.05235."""

import math
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.proxies import product, require_fit, require_sizes

_APART = 1e-5  # beside the squared distance of two centres of a class, as in the authors' code: equal ones have a slope
_COSINES = 2**25  # of embeddings and centres that are held at a time, in several arrays


class SoftTripleLoss(nn.Module):
    """Mean softmax cross entropy of s (S_ic - margin [c = y_i]), with several centres w_ck of each class:

    S_ic = sum_k softmax_k(z_i w_ck / gamma) z_i w_ck, plus tau / (C K (K - 1)) times the sum of the distances of all
    pairs of centres of a class, which merges those that are not needed. Owns `centers` [num_classes, K, embedding_dim],
    drawn from U(-1 / sqrt(C K), 1 / sqrt(C K)); their norms do not count. Embeddings are normalised inside.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: C; labels are 0 .. C - 1. Filled in from the data.
        centers_per_class: K in the formula; 10, or 2 for very many classes.
        scale: factor of the logits, > 0.
        gamma: the smaller, the more the nearest centre alone counts; > 0.
        margin: taken from the similarity of the own class, 0 or greater.
        tau: how strongly centres of a class are drawn together, 0 or greater.

    Raises:
        ValueError: a size, scale or gamma is not positive, or margin or tau is negative.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        centers_per_class: Annotated[int, Gt(0)] = 10,
        scale: Annotated[float, Gt(0)] = 20.0,
        gamma: Annotated[float, Gt(0)] = 0.1,
        margin: Annotated[float, Ge(0)] = 0.01,
        tau: Annotated[float, Ge(0)] = 0.2,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(centers_per_class > 0, "loss.centers_per_class", centers_per_class, "greater than 0")
        require(scale > 0, "loss.scale", scale, "greater than 0")
        require(gamma > 0, "loss.gamma", gamma, "greater than 0")
        require(margin >= 0, "loss.margin", margin, "0 or greater")
        require(tau >= 0, "loss.tau", tau, "0 or greater")
        self.scale, self.gamma, self.margin, self.tau = scale, gamma, margin, tau
        bound = 1 / math.sqrt(num_classes * centers_per_class)
        self.centers = nn.Parameter(torch.empty(num_classes, centers_per_class, embedding_dim).uniform_(-bound, bound))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only).
        """
        classes, k, dim = self.centers.shape
        require_fit(embeddings, labels, dim, classes)
        z, centers = unit(embeddings), unit(self.centers.flatten(0, 1).to(embeddings.dtype))
        step = max(1, _COSINES // len(centers))
        if step >= len(z):
            loss = self._cross_entropy(z, labels, centers) / len(z)
        else:  # what each part holds for the backward pass is made anew there
            parts = zip(z.split(step), labels.split(step), strict=True)
            again = partial(checkpoint, self._cross_entropy, use_reentrant=False, preserve_rng_state=False)
            loss = torch.stack([again(x, y, centers) for x, y in parts]).sum() / len(z)
        if k == 1 or self.tau == 0:
            return loss
        of_class = centers.unflatten(0, (classes, k))
        first, second = torch.triu_indices(k, k, 1, device=centers.device)
        apart = (of_class[:, first] - of_class[:, second]).square().sum(dim=2)
        return loss + self.tau * (apart + _APART).sqrt().sum() / (classes * k * (k - 1))

    def _cross_entropy(self, z: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
        """Summed over embeddings z [b, d] on the sphere; centers are [C K, d]."""
        to_centers = product(z, centers).unflatten(1, self.centers.shape[:2])
        cosines = ((to_centers / self.gamma).softmax(dim=2) * to_centers).sum(dim=2)
        own = labels[:, None]
        logits = self.scale * cosines.scatter(1, own, cosines.gather(1, own) - self.margin)
        return F.cross_entropy(logits, labels, reduction="sum")
