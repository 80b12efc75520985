"""Multimodal loss, Moon and Lee (2023), arXiv:2308.10486: classification by several proxies of each class."""

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.proxies import product, require_fit, require_sizes

_MOST = 2**28  # numbers of the proxies, which grow with the square of the classes


class MultimodalLoss(nn.Module):
    """Mean softmax cross entropy of sim + att, by class probabilities x [m, M C] of M modalities side by side.

    Proxies w_q, K of each class, are cut at 0 and normalised; s_iq = x_i w_q / |x_i|.
    att_ic = sum_j x_(i, jC + c) (1 + A_(i, jC + c)), A_i = sum_q softmax_q(s_i / gamma) w_q over all proxies, and
    sim_ic = sum_k softmax_c'(s_(i, c' k) / gamma)_c s_(i, ck), over the classes c', as the authors' code has it.

    It is made for late fusion: the paper classifies speech, sensors, videos and tissues, and has no retrieval. So that
    one network can be trained with it, the embedding is cut into M equal slices, and a linear layer with softmax makes
    class probabilities of each; that is our addition. With M = 1 it is a classifier with several proxies.

    Owns `proxies` [C K, M C], drawn from U(-1 / sqrt(C K), 1 / sqrt(C K)), and `heads`, M linear layers
    [embedding_dim / M, C].

    Args:
        embedding_dim: d of the embeddings.
        num_classes: C; labels are 0 .. C - 1. Filled in from the data.
        num_modalities: M in the formula, how many kinds of input, > 0.
        proxies_per_class: K in the formula, > 0.
        gamma: the smaller, the more the nearest proxies alone count; > 0.
        heads: make class probabilities by linear layers; false: the embeddings are such already, and embedding_dim is
            M C.

    Raises:
        ValueError: a size or gamma is not positive, embedding_dim does not go with the modalities, or the proxies would
            be too many.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        num_modalities: Annotated[int, Gt(0)] = 1,
        proxies_per_class: Annotated[int, Gt(0)] = 20,
        gamma: Annotated[float, Gt(0)] = 0.1,
        heads: bool = True,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(num_modalities > 0, "loss.num_modalities", num_modalities, "greater than 0")
        require(proxies_per_class > 0, "loss.proxies_per_class", proxies_per_class, "greater than 0")
        require(gamma > 0, "loss.gamma", gamma, "greater than 0")
        wanted = f"a multiple of loss.num_modalities={num_modalities}"
        require(embedding_dim % num_modalities == 0, "loss.embedding_dim", embedding_dim, wanted)
        width = num_modalities * num_classes
        most = _MOST // (width * num_classes)
        wanted = f"at most {most} for {num_classes} classes and {num_modalities} modalities, of which proxies know all"
        if most == 0:
            wanted = f"0: {num_classes} classes are too many for proxies that know all of them"
        require(proxies_per_class <= most, "loss.proxies_per_class", proxies_per_class, wanted)
        self.num_classes, self.num_modalities = num_classes, num_modalities
        self.gamma, self.embedding_dim = gamma, embedding_dim
        count = num_classes * proxies_per_class
        bound = 1 / math.sqrt(count)
        self.proxies = nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))
        self.heads: nn.ModuleList | None = None
        if heads:
            slice_ = embedding_dim // num_modalities
            self.heads = nn.ModuleList(nn.Linear(slice_, num_classes) for _ in range(num_modalities))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or that is not M C where there are no heads, or a label is
                no class (looked at on a CPU only).
        """
        require_fit(embeddings, labels, self.embedding_dim, self.num_classes)
        width = self.num_modalities * self.num_classes
        wanted = f"loss.num_modalities x loss.num_classes = {width}, as loss.heads=false"
        fits = self.heads is not None or self.embedding_dim == width
        require(fits, "loss.embedding_dim", self.embedding_dim, wanted)
        return F.cross_entropy(self.logits(embeddings), labels)

    def logits(self, embeddings: Tensor) -> Tensor:
        """What each class gets [m, C], for predictions too."""
        x, c = self._probabilities(embeddings), self.num_classes
        proxies = unit(self.proxies.to(x.dtype).clamp_min(0))
        s = product(unit(x), proxies)  # [m, C K]
        attention = product((s / self.gamma).softmax(dim=1), proxies.mT)
        att = (x * (1 + attention)).unflatten(1, (-1, c)).sum(dim=1)
        by_class = s.unflatten(1, (c, -1))
        return att + ((by_class / self.gamma).softmax(dim=1) * by_class).sum(dim=2)

    def _probabilities(self, embeddings: Tensor) -> Tensor:
        if self.heads is None:
            return embeddings
        parts = []
        for part, head in zip(embeddings.chunk(len(self.heads), dim=1), self.heads, strict=True):
            weight, bias = (each.to(embeddings.dtype) for each in head.parameters())
            parts.append((product(part.contiguous(), weight) + bias).softmax(dim=1))
        return torch.cat(parts, dim=1)
