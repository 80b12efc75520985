"""Lifted structured loss, Song, Xiang, Jegelka and Savarese (2016); eq. 3 of the NRA paper."""

import torch
from torch import Tensor, nn

from dml.losses.pairwise import distances, full_precision, negative_mask, positive_mask, require, zero


class LiftedLoss(nn.Module):
    """J of eq. 3 over all unordered positive pairs (i, j) of the batch that have a negative.

    The inner sum over the negatives of i and of j is the log-sum-exp of two per-anchor terms, so the whole loss
    takes O(m^2) time and memory.

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
        negative = negative_mask(labels)
        # Both ends of a positive pair share their negatives; a pair without any has no term in eq. 3.
        pairs = torch.triu(positive_mask(labels) & negative.any(dim=1), diagonal=1)
        first, second = torch.nonzero(pairs, as_tuple=True)
        if len(first) == 0:
            return zero(embeddings)
        d = distances(embeddings)
        # -inf rows (anchors without negatives) would put NaN into the gradient: only anchors of pairs are reduced.
        anchors, place = torch.unique(torch.cat([first, second]), return_inverse=True)
        reach = (self.margin - d[anchors]).masked_fill(~negative[anchors], -torch.inf).logsumexp(dim=1)
        at_first, at_second = reach[place].chunk(2)
        violation = torch.logaddexp(at_first, at_second) + d[first, second]
        return violation.clamp_min(0).square().sum() / (2 * len(first))
