"""Multi-class N-pair loss, Sohn (2016); eq. 4 of the NRA paper."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import on_host, to_device
from dml.losses.building_blocks.pairwise import row_blocks


class NPairLoss(nn.Module):
    """Of every class with two members in the batch, the first is the anchor and the second the positive.

    The positives of the other classes are the negatives; the similarity is the dot product. Further members of a
    class and classes with one member take no part.

    Args:
        l2_weight: weight of 0.25 * (mean |a|^2 + mean |p|^2), the regulariser of TensorFlow contrib's npairs_loss.

    Raises:
        ValueError: l2_weight is negative.
    """

    min_samples_per_class = 2

    def __init__(self, *, l2_weight: Annotated[float, Ge(0)] = 0.0) -> None:
        super().__init__()
        require(l2_weight >= 0, "loss.l2_weight", l2_weight, "0 or greater")
        self.l2_weight = l2_weight

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar."""
        # A stable sort puts the members of a class side by side in batch order.
        ordered, order = on_host(labels).sort(stable=True)
        starts = torch.ones_like(ordered, dtype=torch.bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        first = torch.nonzero(starts).squeeze(1)
        first = first[first + 1 < len(ordered)]
        first = first[ordered[first] == ordered[first + 1]]
        if len(first) == 0:
            return zero(embeddings)
        pairs = to_device(torch.stack([order[first], order[first + 1]]), embeddings.device)
        anchors, positives = embeddings[pairs[0]], embeddings[pairs[1]]  # [N, d]
        members = torch.arange(len(first), device=embeddings.device)
        blocks = [
            checkpoint(_row_losses, anchors[rows], positives, rows, use_reentrant=False, preserve_rng_state=False)
            for rows in row_blocks(anchors, members)
        ]
        loss = torch.stack(blocks).sum() / len(first)
        if self.l2_weight:
            norms = anchors.square().sum(dim=1).mean() + positives.square().sum(dim=1).mean()
            loss = loss + 0.25 * self.l2_weight * norms
        return loss


def _row_losses(anchors: Tensor, positives: Tensor, rows: Tensor) -> Tensor:
    # log(1 + sum exp(s_ij - s_ii)) is the cross entropy of row i with i as its class.
    return F.cross_entropy(anchors @ positives.T, rows, reduction="sum")
