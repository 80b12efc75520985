"""Generalised lifted structure loss, Hermans, Beyer and Leibe (2017), arXiv:1703.07737."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, log_sum_exp, sum_over_distances, unit, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.pairwise import root


class GeneralizedLiftedLoss(nn.Module):
    """Mean over anchors of max(0, log sum_p e^(D_ip) + log sum_n e^(margin - D_in)), D distances, not squared.

    Not the lifted loss of Song et al., which is `lifted`. Anchors that lack a positive or a negative are left out of
    the mean. The gradient of a distance that is 0 is 0.

    Args:
        margin: distance at which a negative is far enough, > 0.
        normalize: bring embeddings to length 1 first; false: take them as they come.

    Raises:
        ValueError: margin is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, margin: Annotated[float, Gt(0)] = 1.0, normalize: bool = False) -> None:
        super().__init__()
        require(margin > 0, "loss.margin", margin, "greater than 0")
        self.margin, self.normalize = margin, normalize

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors)
        if len(rows) == 0:
            return zero(embeddings)
        x = unit(embeddings) if self.normalize else embeddings
        return sum_over_distances(x, labels, self._term, rows) / len(rows)

    def _term(self, row: Row) -> Tensor:
        pull = log_sum_exp(root(row.positives), row.real)
        least = torch.finfo(row.values.dtype).tiny  # whose root has a slope
        push = self.margin + row.log_sum(
            lambda v: -v.clamp_min(least).sqrt(), lambda v: v.clamp_min(least).rsqrt_().mul_(-0.5)
        )
        return (pull + push).clamp_min(0)
