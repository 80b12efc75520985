"""Any loss on every group of an embedder's columns, with the divergence of ABE (Kim et al. 2018, arXiv:1804.00382)."""

import copy
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.groups import Groups, parts_of, require_groups


class PerGroupLoss(nn.Module):
    """The sum of a loss over all groups (learners, levels), each of which sees its own columns alone.

    With divergence > 0 the learners are to differ on each image: the mean over images of the sum over pairs p < q of
    learners of max(0, divergence_margin - |B_p - B_q|^2), with B the image's columns on the sphere, is added with that
    weight. ABE's paper sums over the images of its batch of 64; a mean keeps the balance in batches of another size.

    Args:
        loss: any loss; each group has a copy of its own, so weights and memory are not shared.
        groups: numbers in each group. Filled in from the embedder.
        normalize: bring each group to length 1 first, as a search does.
        divergence: how strongly learners are pushed to differ, 0 or greater; 1 in ABE.
        divergence_margin: squared distance of two learners at which they differ enough, > 0.

    Raises:
        ValueError: a number is out of its range, or divergence is asked of groups of different widths.
    """

    min_samples_per_class = 1  # the inner loss has its own

    def __init__(
        self,
        *,
        loss: nn.Module,
        groups: Groups,
        normalize: bool = True,
        divergence: Annotated[float, Ge(0)] = 0.0,
        divergence_margin: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__()
        self.groups = require_groups(groups)
        require(divergence >= 0, "loss.divergence", divergence, "0 or greater")
        require(divergence_margin > 0, "loss.divergence_margin", divergence_margin, "greater than 0")
        alike = len(set(groups)) == 1
        require(
            alike or not divergence, "loss.divergence", divergence, f"0 for groups of different widths, {list(groups)}"
        )
        self.losses = nn.ModuleList(copy.deepcopy(loss) for _ in groups)
        self.normalize, self.divergence, self.divergence_margin = normalize, divergence, divergence_margin

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, sum(groups)], labels [m] -> scalar; of the first `anchors` rows as anchors only, if given."""
        given = {} if anchors is None else {"anchors": anchors}  # not every loss takes them
        parts = parts_of(embeddings, self.groups)
        seen = [unit(part) for part in parts] if self.normalize else parts
        value = sum(loss(part, labels, **given) for loss, part in zip(self.losses, seen, strict=True))
        if self.divergence:
            value = value + self.divergence * self._alike([unit(part[:anchors]) for part in parts])
        return value

    def _alike(self, learners: list[Tensor]) -> Tensor:
        """How far the learners' unit vectors [m, d] of an image are from differing enough, summed over their pairs."""
        close = [
            (self.divergence_margin - (first - second).square().sum(dim=1)).clamp_min(0)
            for p, first in enumerate(learners)
            for second in learners[p + 1 :]
        ]
        return sum((each.mean() for each in close), start=learners[0].new_zeros(()))
