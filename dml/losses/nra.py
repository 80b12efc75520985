"""Nonlinear rank approximation, the loss of Schall, Barthel, Hezel and Jung (2019), arXiv:1909.09427."""

import functools
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.extremes import extremes
from dml.losses.building_blocks.pairwise import distance_to, gradient_with_graph


def transfer(r: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The transfer function w(r; alpha) of eq. 10 and its slope in r, elementwise for ranks r in [0, 1].

    For alpha < 1 the slope at r = 0 and r = 1 is infinite by the formula; it is 0 here.
    """
    base = 2 * torch.minimum(r, 1 - r)
    half = 0.5 * base.pow(alpha)
    slope = alpha * base.pow(alpha - 1)
    if alpha < 1:
        slope.masked_fill_(base == 0, 0)
    return torch.where(r < 0.5, half, 1 - half), slope


class NRALoss(nn.Module):
    """J of eq. 13: worst positive and nearest negative of every anchor, as similarities of approximate ranks.

    Distances are Euclidean, of embeddings as they come (the paper does not normalise them in training).
    Anchors that lack a positive or a negative are left out of the mean. Where all distances of an anchor are equal
    (to within rounding) the rank of eq. 8 is 0/0; we take 0, without gradient, so a collapsed embedding shows as a loss
    near -log(epsilon).

    Args:
        alpha: slope of the transfer function at r = 1/2, > 0.
        epsilon: keeps the loss of one anchor finite, > 0.
        detach_range: stop the gradient through D_min and D_max; the paper does not say, and we let it flow.

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
        anchor, members = extremes(embeddings, labels, anchors)
        if len(anchor) == 0:
            return zero(embeddings)
        # Only these four entries of each row decide the loss, so only they are computed with gradient.
        return _J.apply(distance_to(embeddings, anchor, members), self.alpha, self.epsilon, self.detach_range)

    @torch.no_grad()
    def diagnose(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """saturated_ranks: the share of mined ranks at which the slope of the transfer function is less than 1/100.

        Embeddings [m, d] in full precision, labels [m]; empty where no anchor is valid.
        """
        anchor, members = extremes(embeddings, labels)
        if len(anchor) == 0:
            return {}
        ranks, _ = _ranks(distance_to(embeddings, anchor, members))
        return {"saturated_ranks": 1 - (transfer(ranks, self.alpha)[1] >= 0.01).float().mean()}


class _J(torch.autograd.Function):
    """J of eq. 13 of the distances [4, v] of `extremes`, with its gradient found along with it."""

    @staticmethod
    def forward(ctx: Any, d: Tensor, alpha: float, epsilon: float, detach_range: bool) -> Tensor:
        ranks, span = _ranks(d)
        # A similarity is s = 1 - w(r) by eq. 12, which is w(1 - r), so both summands of eq. 13 look the same.
        w, slope = transfer(ranks, alpha)
        w += epsilon
        # By what is above each span of ranks - the farthest, the negative - and, with a minus, by what is below it.
        by_rank = slope / (w * (-d.shape[1] * span))
        by_d = torch.cat([by_rank, -by_rank])
        if detach_range:
            by_d[::3] = 0
        else:
            by_range = (by_rank * ranks).sum(dim=0)
            by_d[0] -= by_range
            by_d[3] += by_range
        ctx.settings = alpha, epsilon, detach_range
        ctx.save_for_backward(d, by_d)
        return w.log().sum() / -d.shape[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d, by_d = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *gradient_with_graph(functools.partial(_plain_j, *ctx.settings), [d], gradient), None, None, None
        return by_d * gradient, None, None, None


def _plain_j(alpha: float, epsilon: float, detach_range: bool, d: Tensor) -> Tensor:
    if detach_range:
        d = torch.stack([d[0].detach(), d[1], d[2], d[3].detach()])
    ranks, _ = _ranks(d)
    base = 2 * torch.minimum(ranks, 1 - ranks)
    steep = (base == 0) & (alpha < 2 and alpha != 1)  # powers of 0 whose derivatives are infinite: 0, as in `transfer`
    half = 0.5 * base.masked_fill(steep, 1).pow(alpha).masked_fill(steep, 0)
    return (torch.where(ranks < 0.5, half, 1 - half) + epsilon).log().sum() / -d.shape[1]


def _ranks(d: Tensor) -> tuple[Tensor, Tensor]:
    """1 - r of the farthest positives and r of the nearest negatives [2, v] by eq. 8, and D_max - D_min [v].

    Of the distances [4, v] of `extremes`. Where they are all equal the ranks are 0, by a range that is infinite, so
    that nothing follows from them: of rounding alone the gradient would be as large as 1 / eps.
    """
    d_max, d_min = d[0], d[3]
    span = d_max - d_min
    flat = span <= 8 * torch.finfo(d.dtype).eps * d_max
    span.masked_fill_(flat, torch.inf)
    # D_max - D_ip and D_in - D_min; mining and recomputing may round differently, so a rank can be off by an ulp.
    ranks = (d[:2] - d[2:]) / span
    with torch.no_grad():  # torch's clamp has no gradient at its ends, the ranks have
        ranks.clamp_(0, 1)
    ranks[0].masked_fill_(flat, 1)
    return ranks, span
