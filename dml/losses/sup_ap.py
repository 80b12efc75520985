"""SupAP, the upper bound of average precision of Ramzi et al. (2021), arXiv:2110.01445."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, mean_of, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.ranks import largest_class, with_anchor


class SupAPLoss(nn.Module):
    """1 - the mean over anchors with a positive of 1/|P| sum_(i in P) r_i / (r_i + sum_n h(S_n - S_i)), S cosines.

    r_i, the rank among the positives, is 1 and the number of others with S_j >= S_i, and has no gradient. h(t) is
    sig(t / tau) up to t = 0, sig(t / tau) + start up to delta, and rho (t - delta) + offset beyond. Embeddings are
    normalised inside.

    Args:
        tau: temperature of the sigmoid, > 0.
        rho: slope for negatives that are nearer than the positive by more than delta, 0 or greater.
        delta: difference of cosines from which that slope holds, 0 or greater.
        offset: value of h just beyond delta; None: chosen so that h has no step there.
        start: step of h at 0; 0.5, or 0.
        include_self: count the anchor itself as one of its positives, as the authors' code does.

    Raises:
        ValueError: tau is not positive, or rho or delta is negative.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        tau: Annotated[float, Gt(0)] = 0.01,
        rho: Annotated[float, Ge(0)] = 100.0,
        delta: Annotated[float, Ge(0)] = 0.05,
        offset: float | None = None,
        start: float = 0.5,
        include_self: bool = False,
    ) -> None:
        super().__init__()
        require(tau > 0, "loss.tau", tau, "greater than 0")
        require(rho >= 0, "loss.rho", rho, "0 or greater")
        require(delta >= 0, "loss.delta", delta, "0 or greater")
        self.tau, self.rho, self.delta, self.start = tau, rho, delta, start
        self.offset = 1 / (1 + math.exp(-min(delta / tau, 700.0))) + start if offset is None else offset
        self.include_self = include_self

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors, negatives=False)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows, share=largest_class(labels)) / len(rows)

    def _term(self, row: Row) -> Tensor:
        if self.include_self:
            row = with_anchor(row)
        with torch.no_grad():
            nearer = row.positives[:, None, :] <= row.positives[:, :, None]  # each is as near as itself
            rank = (nearer & row.real[:, None]).sum(dim=2).clamp_min(1)  # 0 where there is no positive
        t = row.positives[:, :, None] - row.values[:, None, :]
        soft = (t / self.tau).sigmoid()
        h = torch.where(t > 0, soft + self.start, soft)
        h = torch.where(t > self.delta, self.rho * (t - self.delta) + self.offset, h)
        before = torch.where(row.negative[:, None], h, 0).sum(dim=2)
        return 1 - mean_of(rank / (rank + before), row.real)
