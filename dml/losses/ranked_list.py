"""Ranked list loss, Wang, Hua, Kodirov, Hu, Garnier and Robertson (CVPR 2019; TPAMI 2021), arXiv:1903.03238."""

import math
from typing import Annotated, Literal, get_args

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional

from dml.losses.building_blocks.anchors import Row, rows_of_distances, sum_over_distances, unit
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.pairwise import root

Form = Literal["cvpr", "tpami"]


class RankedListLoss(nn.Module):
    """Positives are drawn to within alpha - margin of the anchor, negatives are pushed beyond alpha.

    Of an anchor, L = (1 - balance) L_P + balance L_N. L_P is the mean of D_p - (alpha - margin) over the positives that
    are farther than that, weighted by e^(t_p (D_p - alpha + margin)). L_N is the mean of alpha - D_n over the negatives
    that are nearer, weighted by e^(t_n (alpha - D_n)). D are distances on the sphere: embeddings are normalised inside.
    Weights have no gradient; without such members a mean is 0.

    form=cvpr: the mean of L over all anchors. form=tpami: as the layer that the authors published in 2020, alpha is 1 +
    margin / 2 whatever `alpha` says, and an anchor counts in proportion to the sum of its weights. (That layer gives
    each anchor its gradient and the other members none; here all members get theirs.)

    Args:
        form: cvpr: as in the paper of 2019; tpami: as in the authors' code of 2020.
        alpha: distance beyond which negatives are far enough, > 0.
        margin: width between the radius of positives and that of negatives, 0 or greater.
        t_p: sharpness of the positives' weights, 0 or greater.
        t_n: sharpness of the negatives' weights, 0 or greater.
        balance: weight of the negatives; positives have 1 less this, 0 to 1.

    Raises:
        ValueError: form is none of the two, alpha is not positive, margin, t_p or t_n is negative, or balance is not
            within 0 and 1.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        form: Form = "cvpr",
        alpha: Annotated[float, Gt(0)] = 1.2,
        margin: Annotated[float, Ge(0)] = 0.4,
        t_p: Annotated[float, Ge(0)] = 0.0,
        t_n: Annotated[float, Ge(0)] = 10.0,
        balance: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    ) -> None:
        super().__init__()
        require(form in get_args(Form), "loss.form", form, "cvpr or tpami")
        require(alpha > 0, "loss.alpha", alpha, "greater than 0")
        require(margin >= 0, "loss.margin", margin, "0 or greater")
        require(t_p >= 0, "loss.t_p", t_p, "0 or greater")
        require(t_n >= 0, "loss.t_n", t_n, "0 or greater")
        require(0 <= balance <= 1, "loss.balance", balance, "from 0 to 1")
        self.form, self.margin, self.t_p, self.t_n, self.balance = form, margin, t_p, t_n, balance
        self.alpha = 1 + margin / 2 if form == "tpami" else alpha

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        if len(labels) < 2:
            return zero(embeddings)
        rows, z = torch.arange(len(labels), device=labels.device)[:anchors], unit(embeddings)
        if self.form == "cvpr":
            return sum_over_distances(z, labels, lambda row: self._term(row)[0], rows) / len(rows)
        value, weight = rows_of_distances(z, labels, lambda row: torch.stack(self._term(row), dim=1), rows).unbind(1)
        weight = weight.detach().masked_fill(weight.isneginf().all(), 0)  # no anchor has a term: all of them are 0
        return (weight.softmax(dim=0) * value).sum()

    def _term(self, row: Row) -> tuple[Tensor, Tensor]:
        """L of each anchor [b], and the logarithm of the sum of its weights [b], which has no gradient."""
        far = (root(row.positives) - (self.alpha - self.margin)).masked_fill(~row.real, -torch.inf)
        d = row.values.clamp_min(torch.finfo(row.values.dtype).tiny).sqrt()
        near = (self.alpha - d).scatter(1, row.of_class, -torch.inf)
        (far, of_far), (near, of_near) = _weighted(far, self.t_p), _weighted(near, self.t_n)
        return (1 - self.balance) * far + self.balance * near, torch.logaddexp(of_far, of_near)


def _weighted(excess: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Of each row the mean of what is above 0, weighted by e^(sharpness * it), and the log of the sum of weights."""
    with torch.no_grad():
        weight = functional.threshold(excess, 0, -torch.inf)
        top = weight.amax(dim=1, keepdim=True).nan_to_num(neginf=0)
        weight.sub_(top)
        if sharpness:
            weight.mul_(sharpness / math.log(2)).exp2_()
        else:
            weight = (weight > -torch.inf).to(excess)
        total = weight.sum(dim=1)
        weight /= total.clamp_min(1)[:, None]  # the largest weighs 1, so no sum of some is less
    return (weight * excess.clamp_min(0)).sum(dim=1), total.log() + sharpness * top[:, 0]
