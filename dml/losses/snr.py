"""Signal-to-noise ratio distance, Yuan, Deng, Tang, Tang and Chen (CVPR 2019), arXiv:1904.02616."""

from typing import Annotated, Literal, get_args

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import hinges, mean_hinge
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import Positives
from dml.losses.building_blocks.rowwise import active_triplets, rowwise

Form = Literal["contrastive", "triplet"]
_LEAST = 1e-12  # beside the variance of an anchor: a row of equal numbers has none


class SNRLoss(nn.Module):
    """A pair or triplet loss of d_ij = var(x_j - x_i) / var(x_i), the noise of a member over the signal of its anchor.

    Variances are over the entries of an embedding, which is taken as it comes; d is not symmetric. form=contrastive:
    the mean of [d_p - pos_margin]+ of positive pairs plus the mean of [neg_margin - d_n]+ of negative pairs.
    form=triplet: the mean of [d_p - d_n + margin]+ of all triplets. All these means are over what is above 0. Both
    forms add zero_mean_weight times the mean of |sum of the entries of x_i|.

    Args:
        form: contrastive: a loss of pairs; triplet: a loss of triplets.
        pos_margin: form=contrastive: distance at which a positive is near enough, 0 or greater.
        neg_margin: form=contrastive: distance at which a negative is far enough, > 0.
        margin: form=triplet: by how much a negative must be farther, > 0.
        zero_mean_weight: weight by which the entries of an embedding are pulled to a mean of 0, 0 or greater.

    Raises:
        ValueError: form is none of the two, a margin is out of range, or zero_mean_weight is negative.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        form: Form = "contrastive",
        pos_margin: Annotated[float, Ge(0)] = 0.0,
        neg_margin: Annotated[float, Gt(0)] = 1.0,
        margin: Annotated[float, Gt(0)] = 0.2,
        zero_mean_weight: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        require(form in get_args(Form), "loss.form", form, "contrastive or triplet")
        require(pos_margin >= 0, "loss.pos_margin", pos_margin, "0 or greater")
        require(neg_margin > 0, "loss.neg_margin", neg_margin, "greater than 0")
        require(margin > 0, "loss.margin", margin, "greater than 0")
        require(zero_mean_weight >= 0, "loss.zero_mean_weight", zero_mean_weight, "0 or greater")
        self.form, self.pos_margin, self.neg_margin, self.margin = form, pos_margin, neg_margin, margin
        self.zero_mean_weight = zero_mean_weight

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows = torch.arange(len(labels), device=labels.device)[:anchors]
        value = zero(embeddings)
        if len(labels) > 1:
            value = value + self._of_distances(embeddings, labels, rows)
        if self.zero_mean_weight == 0:
            return value
        return value + self.zero_mean_weight * embeddings[rows].sum(dim=1).abs().mean()

    def _of_distances(self, x: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)  # the variance of a difference is then its squared length over d
        positives = Positives(labels)
        term = self._triplets if self.form == "triplet" else self._pairs

        def terms(own: Tensor, squared: Tensor, power: Tensor) -> Tensor:
            ratio = squared / x.shape[1] / (power[own, None] + _LEAST)
            return term(ratio, *positives.of(own), positives.negative(own))

        found = rowwise(centred, terms, centred.square().mean(dim=1), rows=rows)
        return sum((mean_hinge(part) for part in found.split(2, dim=1)), zero(x))

    def _pairs(self, ratio: Tensor, members: Tensor, real: Tensor, negative: Tensor) -> Tensor:
        parts = [hinges(ratio.gather(1, members) - self.pos_margin, real), hinges(self.neg_margin - ratio, negative)]
        return torch.cat(parts, dim=1)

    def _triplets(self, ratio: Tensor, members: Tensor, real: Tensor, negative: Tensor) -> Tensor:
        weight, active = active_triplets(ratio, members, real, negative, self.margin)
        return torch.stack([(weight * ratio).sum(dim=1) + self.margin * active, active], dim=1)
