"""Group loss, Elezi, Vascon, Torcinovich, Pelillo and Leal-Taixe (2020), arXiv:1912.00385."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.proxies import product, require_fit, require_sizes

_LEAST = 1e-12  # beside the probability of the own class


class GroupLoss(nn.Module):
    """-mean_i log X_iy plus the cross entropy of a classifier, X its probabilities after the batch has agreed on them.

    X begins as softmax(logits / temperature), of the first members of each class in the batch (its anchors) as their
    class alone. Each iteration multiplies it by what similar members think and makes it sum to 1 again:
    X_ic <- X_ic (W X)_ic / sum_c (W X)_ic X_ic, W_ij the correlation of the entries of embeddings i and j, or 0 if it
    is negative. An embedding agrees with itself: W_ii = 1. Owns `classifier`, a linear layer [embedding_dim,
    num_classes]; embeddings are not normalised.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: C; labels are 0 .. C - 1. Filled in from the data.
        anchors_per_class: images of each class whose label is given; a class with no more images than that counts in
            the cross entropy alone. 0 or greater.
        temperature: of the first probabilities, > 0.
        iterations: how often the probabilities are refined, 0 or greater.
        ce_weight: weight of the cross entropy, 0 or greater.

    Raises:
        ValueError: one of them is out of its range.
    """

    min_samples_per_class = 1

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        anchors_per_class: Annotated[int, Ge(0)] = 2,
        temperature: Annotated[float, Gt(0)] = 24.0,
        iterations: Annotated[int, Ge(0)] = 1,
        ce_weight: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(anchors_per_class >= 0, "loss.anchors_per_class", anchors_per_class, "0 or greater")
        require(temperature > 0, "loss.temperature", temperature, "greater than 0")
        require(iterations >= 0, "loss.iterations", iterations, "0 or greater")
        require(ce_weight >= 0, "loss.ce_weight", ce_weight, "0 or greater")
        self.anchors_per_class, self.temperature = anchors_per_class, temperature
        self.iterations, self.ce_weight = iterations, ce_weight
        self.min_samples_per_class = anchors_per_class + 1  # one that learns from the anchors
        self.classifier = nn.Linear(embedding_dim, num_classes)

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only).
        """
        classes, dim = self.classifier.weight.shape
        require_fit(embeddings, labels, dim, classes)
        weight, bias = (each.to(embeddings.dtype) for each in self.classifier.parameters())
        logits = product(embeddings, weight) + bias
        known = F.one_hot(labels, classes).to(logits.dtype)
        x = torch.where(self._is_anchor(labels)[:, None], known, (logits / self.temperature).softmax(dim=1))
        if self.iterations:
            directions = unit(embeddings - embeddings.mean(dim=1, keepdim=True))
            alike = product(directions, directions).clamp_min(0)
            itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
            alike = torch.where(itself, 1, alike)  # also of an embedding of equal entries, which has no correlation
        for _ in range(self.iterations):
            x = x * product(alike, x.mT)
            x = x / x.sum(dim=1, keepdim=True)
        own = x.gather(1, labels[:, None])
        return F.cross_entropy(logits, labels) * self.ce_weight - (own + _LEAST).log().mean()

    def _is_anchor(self, labels: Tensor) -> Tensor:
        """Which members [m] are among the first of their class in the batch."""
        ordered, order = labels.sort(stable=True)
        place = torch.arange(len(labels), device=labels.device)
        starts = torch.where(ordered.diff(prepend=ordered[:1] - 1) != 0, place, 0).cummax(dim=0).values
        return torch.empty_like(place).scatter(0, order, place - starts) < self.anchors_per_class
