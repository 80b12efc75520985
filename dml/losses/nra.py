"""Nonlinear rank approximation, the loss of Schall, Barthel, Hezel and Jung (2019), arXiv:1909.09427."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.extremes import extremes
from dml.losses.pairwise import distance_to, full_precision, require, zero


def transfer(r: Tensor, alpha: float) -> Tensor:
    """The transfer function w(r; alpha) of eq. 10, elementwise for ranks r in [0, 1].

    Its gradient at r = 0 and r = 1 is finite also for alpha < 1, where the formula's is infinite: it is 0 there.
    """
    low = r < 0.5
    # Each branch sees only its own half, and the ends leave the power where its slope is infinite: an unused
    # infinity would still become NaN in the gradient.
    base = 2 * torch.where(low, r, 1 - r)
    if alpha < 1:
        end = base == 0
        power = base.masked_fill(end, 1).pow(alpha).masked_fill(end, 0)
    else:
        power = base.pow(alpha)
    half = 0.5 * power
    return torch.where(low, half, 1 - half)


class NRALoss(nn.Module):
    """J of eq. 13: worst positive and nearest negative of every anchor, as similarities of approximate ranks.

    Distances are Euclidean, of embeddings as they come (the paper does not normalise them in training).
    Anchors that lack a positive or a negative are left out of the mean. Where all distances of an anchor are equal
    (to within rounding) the rank of eq. 8 is 0/0; we take 0, without gradient, so a collapsed embedding shows as a loss
    near -log(epsilon).

    Args:
        alpha: slope of the transfer function at r = 1/2, > 0.
        epsilon: bounds the loss of one anchor, > 0.
        detach_range: stop the gradient through D_min and D_max; the paper does not say, we let it flow.

    Raises:
        ValueError: alpha or epsilon is not positive.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        alpha: Annotated[float, Gt(0)] = 4.0,
        epsilon: Annotated[float, Gt(0)] = 1e-4,
        detach_range: bool = False,
    ) -> None:
        super().__init__()
        require(alpha > 0, "loss.alpha", alpha, "greater than 0")
        require(epsilon > 0, "loss.epsilon", epsilon, "greater than 0")
        self.alpha = alpha
        self.epsilon = epsilon
        self.detach_range = detach_range

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        found = extremes(embeddings, labels, anchors)
        if len(found.anchor) == 0:
            return zero(embeddings)
        # Only these four entries of each row decide the loss, so only they are computed with gradient: [v] each.
        others = torch.stack([found.farthest_positive, found.nearest_negative, found.farthest, found.nearest])
        d, d_max, d_min = distance_to(embeddings, found.anchor, others).split((2, 1, 1))
        if self.detach_range:
            d_max, d_min = d_max.detach(), d_min.detach()
        span = d_max - d_min
        # Over infinity the rank is 0 and so is its gradient. Of rounding alone it would be as large as 1 / eps.
        flat = span <= 8 * torch.finfo(d.dtype).eps * d_max
        rank = _into_range((d - d_min) / span.masked_fill(flat, torch.inf))
        w_positive, w_negative = transfer(rank, self.alpha)
        # s = 1 - w by eq. 12.
        return -(torch.stack([1 - w_positive, w_negative]) + self.epsilon).log().sum() / len(found.anchor)

    @torch.no_grad()
    def diagnose(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """saturated_ranks: the share of mined ranks at which the slope of the transfer function is less than 1/100.

        Embeddings [m, d] in full precision, labels [m]; empty where no anchor is valid.
        """
        found = extremes(embeddings, labels)
        if len(found.anchor) == 0:
            return {}
        others = torch.stack([found.farthest_positive, found.nearest_negative, found.farthest, found.nearest])
        d, d_max, d_min = distance_to(embeddings, found.anchor, others).split((2, 1, 1))
        rank = (d - d_min) / (d_max - d_min)  # NaN, 0/0, has no slope either
        slope = self.alpha * (2 * torch.minimum(rank, 1 - rank)).pow(self.alpha - 1)
        return {"saturated_ranks": 1 - ((slope >= 0.01) & slope.isfinite()).float().mean()}  # at infinity it is 0


def _into_range(rank: Tensor) -> Tensor:
    # Mining and recomputing may round differently, so a rank can leave the [0, 1] of eq. 8 by an ulp. The value is
    # clamped, the gradient is not: clamp would drop it at exactly 0 and 1, where the extremes are.
    return rank + (rank.clamp(0, 1) - rank).detach()
