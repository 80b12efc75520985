"""Neighbourhood components analysis, Goldberger, Roweis, Hinton and Salakhutdinov (2004): the logarithmic form."""

from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, log_sum_exp, softplus, sum_over_distances, unit, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero


class NCALoss(nn.Module):
    """Mean over anchors with a positive of log sum_(j != i) e^(-s D_ij^2) - log sum_p e^(-s D_ip^2).

    That is minus the logarithm of the share that an anchor's positives have among its neighbours. A batch of one class
    has no other neighbours, and the loss 0.

    Args:
        scale: s in the formula, > 0. With normalised embeddings 1 is soft; 9 to 30 are sharper.
        normalize: bring embeddings to length 1 first; the paper takes them as they come.

    Raises:
        ValueError: scale is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, scale: Annotated[float, Gt(0)] = 1.0, normalize: bool = True) -> None:
        super().__init__()
        require(scale > 0, "loss.scale", scale, "greater than 0")
        self.scale, self.normalize = scale, normalize

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows, _ = valid_anchors(labels, anchors)
        if len(rows) == 0:
            return zero(embeddings)
        x = unit(embeddings) if self.normalize else embeddings
        return sum_over_distances(x, labels, self._term, rows) / len(rows)

    def _term(self, row: Row) -> Tensor:
        others = row.log_sum_of_scaled(-self.scale)
        return softplus(others - log_sum_exp(-self.scale * row.positives, row.real))
