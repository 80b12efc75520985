"""Circle loss with class labels, Sun et al. (2020), arXiv:2002.10857."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, log_sum_exp, softplus, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero


class CircleLoss(nn.Module):
    """Mean over anchors of log(1 + sum_n e^(g w_n (S_n - m)) sum_p e^(-g w_p (S_p - 1 + m))), S cosines.

    The weights w_n = max(0, S_n + m) and w_p = max(0, 1 + m - S_p) get no gradient, and none in a second derivative.
    Anchors that lack a positive or a negative are left out of the mean. Embeddings are normalised inside.

    Args:
        margin: m in the formula; 0.4 for fine-grained retrieval, 0.25 for faces and persons.
        gamma: sharpness, g in the formula, > 0; 80, or 256 for faces and 128 for persons.

    Raises:
        ValueError: gamma is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, margin: float = 0.4, gamma: Annotated[float, Gt(0)] = 80.0) -> None:
        super().__init__()
        require(gamma > 0, "loss.gamma", gamma, "greater than 0")
        self.margin, self.gamma = margin, gamma

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows) / len(rows)

    def _term(self, row: Row) -> Tensor:
        # In gaps v = 1 - S: w_n = 1 + m - v, w_p = m + v.
        m, g = self.margin, self.gamma
        with torch.no_grad():
            of_positives = g * (m + row.positives).clamp_min(0)

        def weights(v: Tensor) -> Tensor:
            return (1 + m - v.detach()).clamp_min_(0).mul_(g)

        push = row.log_sum(lambda v: weights(v) * (1 - m - v), lambda v: weights(v).neg_())
        pull = log_sum_exp(of_positives * (row.positives - m), row.real)
        return softplus(push + pull)
