"""Normalised temperature-scaled cross entropy (InfoNCE) with class labels, and SINCERE.

Van den Oord, Li and Vinyals (2018), arXiv:1807.03748; Chen et al. (2020), arXiv:2002.05709; Feeney and Hughes (2023),
arXiv:2309.14277.
"""

from typing import Annotated, Literal, get_args

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, softplus, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero

Average = Literal["pair", "anchor"]


class NTXentLoss(nn.Module):
    """Mean over ordered positive pairs (i, p) of -log( e^(S_ip / T) / (e^(S_ip / T) + sum_n e^(S_in / T)) ), S cosines.

    Below stand the pair itself and the anchor's negatives; its other positives do not. With two images of each class
    this is SimCLR's loss. Pairs without a negative are left out. Embeddings are normalised inside.

    Args:
        temperature: T in the formula; the smaller, the more the hardest pairs count, > 0.
        average: pair: the mean over all pairs; anchor: over the pairs of each anchor, then over anchors (SINCERE),
            which differs where classes have different sizes.

    Raises:
        ValueError: temperature is not positive, or average is neither.
    """

    min_samples_per_class = 2

    def __init__(self, *, temperature: Annotated[float, Gt(0)] = 0.1, average: Average = "pair") -> None:
        super().__init__()
        require(temperature > 0, "loss.temperature", temperature, "greater than 0")
        require(average in get_args(Average), "loss.average", average, "pair or anchor")
        self.temperature, self.average = temperature, average

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, positives = valid_anchors(labels, anchors)
        if len(rows) == 0:
            return zero(embeddings)
        count = positives.sum() if self.average == "pair" else len(rows)
        return sum_over_cosines(embeddings, labels, self._term, rows) / count

    def _term(self, row: Row) -> Tensor:
        # S = 1 - v; the ones cancel.
        scale = 1 / self.temperature
        reach = row.log_sum_of_scaled(-scale)
        pairs = torch.where(row.real, softplus(reach[:, None] + row.positives * scale), 0).sum(dim=1)
        return pairs if self.average == "pair" else pairs / row.real.sum(dim=1)
