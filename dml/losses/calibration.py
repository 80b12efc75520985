"""Calibration of similarities, Ramzi et al. (2021), arXiv:2110.01445, and the threshold-consistent margin (2023)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, hinges, mean_hinge, rows_of_cosines
from dml.losses.building_blocks.contract import full_precision, require, zero


class CalibrationLoss(nn.Module):
    """The mean of [pos_margin - S]+ of positive pairs plus the mean of [S - neg_margin]+ of negative ones, S cosines.

    Each mean is over the pairs of the batch whose term is above 0, and has a weight. One threshold is to suit all
    classes, beside another loss (`loss=sum`, `loss=roadmap`). With neg_margin 0.5 it is the threshold-consistent margin
    of Zhang et al. (2023), arXiv:2307.04047. Embeddings are normalised inside.

    Args:
        pos_margin: cosine that positive pairs should reach.
        neg_margin: cosine that negative pairs should not exceed.
        pos_weight: weight of the positive pairs, 0 or greater.
        neg_weight: weight of the negative pairs, 0 or greater.

    Raises:
        ValueError: a weight is negative.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        pos_margin: float = 0.9,
        neg_margin: float = 0.6,
        pos_weight: Annotated[float, Ge(0)] = 1.0,
        neg_weight: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__()
        require(pos_weight >= 0, "loss.pos_weight", pos_weight, "0 or greater")
        require(neg_weight >= 0, "loss.neg_weight", neg_weight, "0 or greater")
        self.pos_margin, self.neg_margin = pos_margin, neg_margin
        self.pos_weight, self.neg_weight = pos_weight, neg_weight

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of pairs with one of the first `anchors` rows, if that is given."""
        if len(labels) < 2:
            return zero(embeddings)
        rows = torch.arange(len(labels), device=labels.device)[:anchors]
        found = rows_of_cosines(embeddings, labels, self._term, rows)
        return self.pos_weight * mean_hinge(found[:, :2]) + self.neg_weight * mean_hinge(found[:, 2:])

    def _term(self, row: Row) -> Tensor:
        # Of gaps 1 - S.
        positive = hinges(row.positives - (1 - self.pos_margin), row.real)
        negative = hinges((1 - self.neg_margin) - row.values, row.negative)
        return torch.cat([positive, negative], dim=1)
