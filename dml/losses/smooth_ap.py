"""Smooth-AP, Brown, Xie, Kalogeiton and Zisserman (2020), arXiv:2007.12163."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, mean_of, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.ranks import largest_class, members_before, with_anchor, without_anchor


class SmoothAPLoss(nn.Module):
    """1 - the mean over anchors with a positive of their average precision, with sigmoids in the place of steps:

    AP = 1/|P| sum_(i in P) (1 + sum_(j in P, j != i) sig((S_j - S_i) / T)) / (1 + sum_(j != i) sig((S_j - S_i) / T)).

    S are the cosines to the anchor, and j runs over the others of the batch. Embeddings are normalised inside.

    Args:
        temperature: T in the formula; the smaller, the closer to true ranks, > 0.
        include_self: count the anchor itself as one of its positives, as the authors' code does (not their formula).

    Raises:
        ValueError: temperature is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, temperature: Annotated[float, Gt(0)] = 0.01, include_self: bool = False) -> None:
        super().__init__()
        require(temperature > 0, "loss.temperature", temperature, "greater than 0")
        self.temperature, self.include_self = temperature, include_self

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors, negatives=False)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows, share=largest_class(labels)) / len(rows)

    def _term(self, row: Row) -> Tensor:
        row, others = (with_anchor(row), row.values) if self.include_self else (row, without_anchor(row))
        positives = row.positives.masked_fill(~row.real, torch.inf)
        # Each positive is among those that it is compared with, as a half.
        rank = 0.5 + members_before(row.positives, others, self.temperature)
        of_positives = 0.5 + members_before(row.positives, positives, self.temperature)
        return 1 - mean_of(of_positives / rank, row.real)
