"""Triplet loss with all, semi-hard or hard mining; eq. 2 of the NRA paper on squared distances."""

import functools
from typing import Annotated, Literal, get_args

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.extremes import extremes
from dml.losses.building_blocks.host import Positives, on_host
from dml.losses.building_blocks.pairwise import distance_to
from dml.losses.building_blocks.rowwise import active_triplets, sorted_rows, sum_over_rows

Mining = Literal["all", "semi_hard", "hard"]


class TripletLoss(nn.Module):
    """max(0, D_ap^2 - D_an^2 + margin), averaged over the mined triplets.

    mining = all: every valid triplet of the batch, zeros included in the mean (Schultz and Joachims 2003).
    mining = semi_hard: for every ordered positive pair that has a negative, the nearest negative that is farther
        than the positive, else the farthest negative (FaceNet, Schroff et al. 2015; the fallback and the mean are
        those of TensorFlow contrib's triplet_semihard_loss, which the NRA paper used). In large batches a negative
        whose distance equals the positive's to within rounding may count as farther.
    mining = hard: for every anchor its farthest positive and nearest negative (Hermans et al. 2017, batch hard).

    Args:
        margin: by how much the squared distance of a negative must be larger, > 0.
        mining: which triplets of a batch count.

    Raises:
        ValueError: margin is not positive, or mining is none of the three.
    """

    min_samples_per_class = 2

    def __init__(self, *, margin: Annotated[float, Gt(0)] = 1.0, mining: Mining = "semi_hard") -> None:
        super().__init__()
        require(margin > 0, "loss.margin", margin, "greater than 0")
        require(mining in get_args(Mining), "loss.mining", mining, "all, semi_hard or hard")
        self.margin = margin
        self.mining = mining

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        if self.mining == "hard":
            return self._hard(embeddings, labels, anchors)
        _, own, sizes = on_host(labels).unique(return_inverse=True, return_counts=True)
        positives = sizes[own[:anchors]] - 1
        negatives = len(labels) - 1 - positives
        pairs = int((positives * (negatives > 0)).sum())
        if pairs == 0:
            return zero(embeddings)
        everything = self.mining == "all"
        mined, count = (self._all, int((positives * negatives).sum())) if everything else (self._semi_hard, pairs)
        rows = torch.arange(len(own), device=labels.device)[:anchors]
        return sum_over_rows(embeddings, functools.partial(mined, Positives(labels)), rows=rows) / count

    def _hard(self, embeddings: Tensor, labels: Tensor, anchors: int | None) -> Tensor:
        anchor, members = extremes(embeddings, labels, anchors, of_classes_only=True)
        if len(anchor) == 0:
            return zero(embeddings)
        d_negative, d_positive = distance_to(embeddings, anchor, members)
        return (d_positive.square() - d_negative.square() + self.margin).clamp_min(0).mean()

    def _semi_hard(self, positives: Positives, rows: Tensor, squared: Tensor) -> Tensor:
        with torch.no_grad():
            negative = positives.negative(rows)
            negatives, order = sorted_rows(squared.masked_fill(~negative, torch.inf))
            count = negative.sum(dim=1)
            members, real = positives.of(rows)
            # Position in the sorted row of the first negative strictly farther than each positive.
            place = torch.searchsorted(negatives, squared.gather(1, members), right=True)
            place = torch.minimum(place, count[:, None] - 1)  # none is farther: the farthest negative
            chosen = order.gather(1, place)
        gap = squared.gather(1, members) - squared.gather(1, chosen)
        # A NaN in a member that no pair mined must still reach the loss, so that the run stops.
        broken = squared.detach().sum(dim=1) * 0
        return broken + torch.where(real, (gap + self.margin).clamp_min(0), 0).sum(dim=1)

    def _all(self, positives: Positives, rows: Tensor, squared: Tensor) -> Tensor:
        weight, active = active_triplets(squared, *positives.of(rows), positives.negative(rows), self.margin)
        return (weight * squared).sum(dim=1) + self.margin * active
