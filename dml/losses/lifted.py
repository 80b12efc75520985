"""Lifted structured loss, Song, Xiang, Jegelka and Savarese (2016); eq. 3 of the NRA paper."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.pairwise import masks, root
from dml.losses.building_blocks.rowwise import rowwise


class LiftedLoss(nn.Module):
    """J of eq. 3 over all unordered positive pairs (i, j) of the batch that have a negative.

    The inner sum over the negatives of i and of j is the log-sum-exp of two per-anchor terms, so the whole loss
    takes O(m^2 d) time and O(m d) memory.

    Raises:
        ValueError: margin is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, margin: Annotated[float, Gt(0)] = 1.0) -> None:
        super().__init__()
        require(margin > 0, "loss.margin", margin, "greater than 0")
        self.margin = margin

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar."""
        sizes = labels.unique(return_counts=True)[1]
        pairs = (sizes * (sizes - 1)).sum() // 2
        # A pair without negatives has no term in eq. 3: that is all of them in a batch of one class.
        if len(sizes) < 2 or pairs == 0:
            return zero(embeddings)

        def reaches(rows: Tensor, squared: Tensor) -> Tensor:
            return (self.margin - root(squared)).masked_fill(~masks(labels, rows)[1], -torch.inf).logsumexp(dim=1)

        def violations(rows: Tensor, squared: Tensor, reach: Tensor) -> Tensor:
            i, j = torch.nonzero(masks(labels, rows)[0], as_tuple=True)
            violation = torch.logaddexp(reach[rows[i]], reach[j]) + root(squared[i, j])
            return squared.new_zeros(len(rows)).index_add(0, i, violation.clamp_min(0).square())

        # The rows hold every unordered pair twice.
        return rowwise(embeddings, violations, rowwise(embeddings, reaches)).sum() / (4 * pairs)
