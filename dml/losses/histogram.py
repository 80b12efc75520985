"""Histogram loss, Ustinova and Lempitsky (NeurIPS 2016), arXiv:1611.00822."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, rows_of_cosines
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.histograms import histogram
from dml.losses.building_blocks.host import on_host


class HistogramLoss(nn.Module):
    """sum_r h-_r sum_(q <= r) h+_q: the probability that a random negative pair is more similar than a positive one.

    h+ and h- are the histograms of the cosines of all positive and all negative pairs of the batch, each of sum 1, with
    `bins` nodes from -1 to 1; a cosine is shared linearly between the two next to it. A batch without a positive or
    without a negative pair has loss 0. Embeddings are normalised inside.

    Args:
        bins: number of nodes of the histograms, 2 or more; 201 as in the authors' settings.

    Raises:
        ValueError: bins is less than 2.
    """

    min_samples_per_class = 2

    def __init__(self, *, bins: Annotated[int, Ge(2)] = 201) -> None:
        super().__init__()
        require(bins >= 2, "loss.bins", bins, "2 or greater")
        self.bins = bins

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of pairs with one of the first `anchors` rows, if that is given."""
        _, own, sizes = on_host(labels).unique(return_inverse=True, return_counts=True)
        rows = torch.arange(len(labels), device=labels.device)[:anchors]
        positives = int((sizes[own[:anchors]] - 1).sum())
        negatives = len(rows) * (len(labels) - 1) - positives
        if not positives or not negatives:
            return zero(embeddings)
        positive, negative = rows_of_cosines(embeddings, labels, self._term, rows).sum(dim=0)
        return (negative / negatives * (positive / positives).cumsum(dim=0)).sum()

    def _term(self, row: Row) -> Tensor:
        """The histograms of these anchors, of positive and of negative pairs, [1, 2, bins]."""
        # From the node of cosine 1 down: gaps 1 - S have all their digits there.
        step = 2 / (self.bins - 1)
        parts = (row.positives, row.real), (row.values, row.negative)
        return torch.stack([histogram(values / step, mask, self.bins).flip(0) for values, mask in parts])[None]
