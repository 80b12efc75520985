"""Lifted structured loss, Song, Xiang, Jegelka and Savarese (2016); eq. 3 of the NRA paper."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import Positives, on_host
from dml.losses.building_blocks.pairwise import root
from dml.losses.building_blocks.rowwise import rowwise


class LiftedLoss(nn.Module):
    """J of eq. 3 over all unordered positive pairs (i, j) of the batch that have a negative.

    The inner sum over the negatives of i and of j is the log-sum-exp of two per-anchor terms, so the whole loss
    takes O(m^2 d) time and O(m d) memory.

    Args:
        margin: distance at which a negative is far enough, > 0.

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
        sizes = on_host(labels).unique(return_counts=True)[1]
        pairs = int((sizes * (sizes - 1)).sum()) // 2
        # A pair without negatives has no term in eq. 3: that is all of them in a batch of one class.
        if len(sizes) < 2 or pairs == 0:
            return zero(embeddings)
        positives = Positives(labels)

        def reaches(rows: Tensor, squared: Tensor) -> Tensor:
            return (self.margin - root(squared)).masked_fill(~positives.negative(rows), -torch.inf).logsumexp(dim=1)

        def violations(rows: Tensor, squared: Tensor, reach: Tensor) -> Tensor:
            members, real = positives.of(rows)
            violation = torch.logaddexp(reach[rows, None], reach[members]) + root(squared.gather(1, members))
            return torch.where(real, violation.clamp_min(0).square(), 0).sum(dim=1)

        reach = rowwise(embeddings, reaches)
        # The rows hold every unordered pair twice.
        return rowwise(embeddings, violations, reach).sum() / (4 * pairs)
