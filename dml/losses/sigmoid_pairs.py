"""Sigmoid loss of pairs, Zhai, Mustafa, Kolesnikov and Beyer (2023), arXiv:2303.15343 (SigLIP), with labels."""

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, softplus, sum_over_cosines
from dml.losses.building_blocks.contract import full_precision, require


class SigmoidPairsLoss(nn.Module):
    """1/m sum_i sum_(j != i) log(1 + e^(-q_ij (t S_ij + b))), q = 1 for two of a class, else -1, S cosines.

    t = e^log_scale and b = shift are learnt. In SigLIP i is an image and j a text; here both are the same batch, so the
    anchor itself is left out. Embeddings are normalised inside.

    Args:
        scale: first value of t in the formula, which is learnt, > 0.
        shift: first value of b, which is learnt; -10 where few pairs are positive; log(n / m) for m images, n a class.

    Raises:
        ValueError: scale is not positive.
    """

    min_samples_per_class = 2

    def __init__(self, *, scale: Annotated[float, Gt(0)] = 10.0, shift: float = -10.0) -> None:
        super().__init__()
        require(scale > 0, "loss.scale", scale, "greater than 0")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        rows = torch.arange(len(labels), device=labels.device)[:anchors]
        scale, shift = self.log_scale.to(embeddings.dtype).exp(), self.shift.to(embeddings.dtype)
        total = sum_over_cosines(embeddings, labels, _term, rows, scale, shift)
        return total / len(rows)


def _term(row: Row, scale: Tensor, shift: Tensor) -> Tensor:
    logits = scale * (1 - row.values) + shift
    itself = row.anchor[:, None] == torch.arange(logits.shape[1], device=logits.device)
    return softplus(torch.where(row.negative, logits, -logits)).masked_fill(itself, 0).sum(dim=1)
