"""ROADMAP, Ramzi, Thome, Rambour, Audebert and Bitot (NeurIPS 2021), arXiv:2110.01445: SupAP and calibration."""

from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from dml.losses.building_blocks.contract import checked, require
from dml.losses.calibration import CalibrationLoss
from dml.losses.sup_ap import SupAPLoss


class RoadmapLoss(nn.Module):
    """(1 - weight) times `sup_ap` plus weight times `calibration`: a smooth upper bound of 1 - AP whose batches agree.

    Embeddings are normalised inside.

    Args:
        weight: of the calibration, from 0 to 1. The authors' code adds both with weight 1: twice the loss of 0.5.
        pos_margin: cosine that positive pairs should reach.
        neg_margin: cosine that negative pairs should not exceed.
        tau: this and all that follow are those of `sup_ap`.
        rho: slope for negatives that are nearer than the positive by more than delta, 0 or greater.
        delta: difference of cosines from which that slope holds, 0 or greater.
        offset: value of h just beyond delta; None: chosen so that h has no step there.
        start: step of h at 0; 0.5, or 0.
        include_self: count the anchor itself as one of its positives, as the authors' code does.

    Raises:
        ValueError: weight is not within 0 and 1, tau is not positive, or rho or delta is negative.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        weight: Annotated[float, Interval(ge=0, le=1)] = 0.5,
        pos_margin: float = 0.9,
        neg_margin: float = 0.6,
        tau: Annotated[float, Gt(0)] = 0.01,
        rho: Annotated[float, Ge(0)] = 100.0,
        delta: Annotated[float, Ge(0)] = 0.05,
        offset: float | None = None,
        start: float = 0.5,
        include_self: bool = False,
    ) -> None:
        super().__init__()
        require(0 <= weight <= 1, "loss.weight", weight, "from 0 to 1")
        self.weight = weight
        self.sup_ap = SupAPLoss(tau=tau, rho=rho, delta=delta, offset=offset, start=start, include_self=include_self)
        self.calibration = CalibrationLoss(pos_margin=pos_margin, neg_margin=neg_margin)

    @checked
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        ranks = self.sup_ap(embeddings, labels, anchors=anchors)
        return (1 - self.weight) * ranks + self.weight * self.calibration(embeddings, labels, anchors=anchors)
