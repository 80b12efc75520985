"""Contrastive loss, Hadsell, Chopra and LeCun (2006); eq. 1 of the NRA paper."""

import torch
from torch import Tensor, nn

from dml.losses.pairwise import full_precision, require, root, zero
from dml.losses.rowwise import sum_over_rows


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
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        m = len(embeddings)
        if m < 2:
            return zero(embeddings)

        def terms(rows: Tensor, squared: Tensor) -> Tensor:
            same = labels[rows, None] == labels[None, :]  # with self, whose distance is 0
            return torch.where(same, squared, (self.margin - root(squared)).clamp_min(0).square()).sum(dim=1)

        # The whole matrix holds every unordered pair twice.
        total = sum_over_rows(embeddings, terms, anchors, symmetric=anchors is None)
        return total / ((m if anchors is None else anchors) * (m - 1))
