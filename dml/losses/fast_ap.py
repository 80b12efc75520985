"""FastAP, Cakir, He, Xia, Kulis and Sclaroff (2019): average precision by histograms of distances."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero


class FastAPLoss(nn.Module):
    """1 - the mean over anchors with a positive of 1/|P| sum_l h+_l H+_l / H_l, by histograms of squared distances.

    Squared distances on the sphere, from 0 to 4, are shared linearly between the two next of bins + 1 nodes: h+
    those of the positives, h those of all others; H+ and H are their running sums. Embeddings are normalised inside.

    Args:
        bins: number of bins of the histograms, > 0.

    Raises:
        ValueError: bins is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, bins: Annotated[int, Gt(0)] = 10) -> None:
        super().__init__()
        require(bins > 0, "loss.bins", bins, "greater than 0")
        self.bins = bins

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors, negatives=False)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows) / len(rows)

    def _term(self, row: Row) -> Tensor:
        own = self._histogram(row.positives, row.real)
        running = own.cumsum(dim=1)
        all_ = running + self._histogram(row.values, row.negative).cumsum(dim=1)
        filled = all_ > 0
        share = torch.where(filled, own * running / torch.where(filled, all_, 1), 0).sum(dim=1)
        return 1 - share / row.real.sum(dim=1)

    def _histogram(self, gaps: Tensor, mask: Tensor) -> Tensor:
        """Shares [b, bins + 1] of the true entries of the gaps [b, k]."""
        place = gaps * (self.bins / 2)  # D^2 = 2 (1 - S)
        low = place.detach().floor().nan_to_num(0).clamp(0, self.bins - 1)
        high_share = torch.where(mask, place - low, 0)
        low_share = torch.where(mask, 1 - (place - low), 0)
        empty, index = gaps.new_zeros(len(gaps), self.bins + 1), low.long()
        return empty.scatter_add(1, index, low_share).scatter_add(1, index + 1, high_share)
