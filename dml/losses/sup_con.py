"""Supervised contrastive loss, Khosla et al. (2020), arXiv:2004.11362: L_out, its equation 2."""

from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, mean_of, sum_over_cosines, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero


class SupConLoss(nn.Module):
    """Mean over anchors with a positive of the mean over their positives p of log sum_(j != i) e^(S_ij / T) - S_ip / T.

    The sum below is over all others, positives included, so the loss of a batch of one class is not 0: it spreads its
    members. Embeddings are normalised inside; each image is seen once.

    Args:
        temperature: T in the formula; the smaller, the more the hardest pairs count, > 0.

    Raises:
        ValueError: temperature is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, temperature: Annotated[float, Gt(0)] = 0.1) -> None:
        super().__init__()
        require(temperature > 0, "loss.temperature", temperature, "greater than 0")
        self.temperature = temperature

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors, negatives=False)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows) / len(rows)

    def _term(self, row: Row) -> Tensor:
        # S = 1 - v; the ones cancel.
        scale = 1 / self.temperature
        return row.log_sum_of_scaled(-scale, all_others=True) + mean_of(row.positives, row.real) * scale
