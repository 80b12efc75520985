"""Contrastive loss, Hadsell, Chopra and LeCun (2006); eq. 1 of the NRA paper."""

import torch
from torch import Tensor, nn

from dml.losses.pairwise import distances, full_precision, positive_mask, require, zero


class ContrastiveLoss(nn.Module):
    """Mean over all unordered pairs of the batch: D^2 for a positive pair, max(0, margin - D)^2 for a negative one.

    Raises:
        ValueError: margin is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__()
        require(margin > 0, "loss.margin", margin, "greater than 0")
        self.margin = margin

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar."""
        m = len(embeddings)
        if m < 2:
            return zero(embeddings)
        d = distances(embeddings)
        per_pair = torch.where(positive_mask(labels), d, (self.margin - d).clamp_min(0)).square()
        # The matrix holds every unordered pair twice.
        return per_pair.triu(diagonal=1).sum() / (m * (m - 1) / 2)
