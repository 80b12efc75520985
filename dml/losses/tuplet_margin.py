"""Tuplet margin loss, Yu and Tao (2019), without its intra-pair variance."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, softplus, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.pairwise import root


class TupletMarginLoss(nn.Module):
    """Mean over ordered positive pairs (a, p) of log(1 + sum_n e^(s (S_an - cos(t_ap - b)))), S_ap = cos t_ap.

    By the formula the pull of a pair whose angle is below b reverses. Pairs without a negative are left out. Embeddings
    are normalised inside. In float32 the sine of a pair that points in nearly opposite directions keeps about three
    digits.

    Args:
        margin: taken from the angle of a positive pair, in degrees, 0 or greater.
        scale: s in the formula, sharpness, > 0.

    Raises:
        ValueError: margin is negative, or scale is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, margin: Annotated[float, Ge(0)] = 5.73, scale: Annotated[float, Gt(0)] = 64.0) -> None:
        super().__init__()
        require(margin >= 0, "loss.margin", margin, "0 or greater")
        require(scale > 0, "loss.scale", scale, "greater than 0")
        self.margin, self.scale = margin, scale

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, positives = valid_anchors(labels, anchors)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows) / positives.sum()

    def _term(self, row: Row) -> Tensor:
        b, gap = math.radians(self.margin), row.positives
        # cos(t - b) = cos t cos b + sin t sin b, and sin^2 t = (1 - S)(1 + S), which needs no angle.
        aim = (1 - gap) * math.cos(b) + root(gap * (2 - gap)) * math.sin(b)
        reach = self.scale + row.log_sum_of_scaled(-self.scale)
        return torch.where(row.real, softplus(reach[:, None] - self.scale * aim), 0).sum(dim=1)
