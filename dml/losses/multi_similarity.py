"""Multi-similarity loss, Wang, Han, Huang, Dong and Scott (2019), arXiv:1904.06627, with its mining."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from dml.losses.building_blocks.anchors import Row, log_one_plus_sum, softplus, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero


class MultiSimilarityLoss(nn.Module):
    """1/m sum_i [ 1/a log(1 + sum_p e^(-a (S_ip - base))) + 1/b log(1 + sum_n e^(b (S_in - base))) ], S cosines.

    Mining keeps the negatives that are more similar than the least similar positive less epsilon, and the positives
    that are less similar than the most similar negative plus epsilon. The sum is divided by all m anchors, as the
    authors' code does, also by those of which mining keeps nothing. Embeddings are normalised inside.

    Args:
        alpha: sharpness of the positives, > 0.
        beta: sharpness of the negatives, > 0.
        base: similarity at which a pair begins to count; 0.5 as in the authors' code (the paper has 1).
        epsilon: how much easier than the hardest a chosen pair may be; None: all pairs count.

    Raises:
        ValueError: alpha or beta is not positive, or epsilon is negative.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        alpha: Annotated[float, Gt(0)] = 2.0,
        beta: Annotated[float, Gt(0)] = 50.0,
        base: float = 0.5,
        epsilon: Annotated[float, Ge(0)] | None = 0.1,
    ) -> None:
        super().__init__()
        require(alpha > 0, "loss.alpha", alpha, "greater than 0")
        require(beta > 0, "loss.beta", beta, "greater than 0")
        require(epsilon is None or epsilon >= 0, "loss.epsilon", epsilon, "0 or greater, or null")
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows) / len(labels[:anchors])

    def _term(self, row: Row) -> Tensor:
        # In gaps v = 1 - S.
        positive, limit = row.real, None
        if self.epsilon is not None:
            with torch.no_grad():
                limit = row.positives.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True) + self.epsilon
                nearest = row.values.scatter(1, row.of_class, torch.inf).amin(dim=1, keepdim=True)
                positive = positive & (row.positives + self.epsilon > nearest)

        def exponent(v: Tensor) -> Tensor:
            if limit is None:
                return self.beta * ((1 - self.base) - v)
            # What is mined is nearer than the limit. A mask would take longer than all the rest.
            return functional.threshold(limit - v, 0, -torch.inf).add(1 - self.base - limit).mul(self.beta)

        pull = log_one_plus_sum(self.alpha * (row.positives - (1 - self.base)), positive)
        push = softplus(row.log_sum(exponent, lambda v: -self.beta))
        return pull / self.alpha + push / self.beta
