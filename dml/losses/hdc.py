"""Hard-aware deeply cascaded embedding (HDC), Yuan, Yang and Zhang (2017), arXiv:1611.05720."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.groups import Groups, parts_of, require_groups
from dml.losses.building_blocks.pairwise import distance_to
from dml.losses.building_blocks.rowwise import rowwise

# Of squared distances of unit vectors: rounding decides what is below.
_SAME, _AT_MARGIN = 1e-10, 1e-6


class HDCLoss(nn.Module):
    """Each group of columns is a level, which learns from its own hardest pairs: a share of them, less at each level.

    A positive pair loses D^2, a negative one factor * max(0, margin - D^2), with D of the columns on the sphere. Level
    k keeps the hardest int(ratios[k] * count) of the positive pairs, and so of the negative ones; of equally hard
    pairs (i < j) the first in the order of the batch. Its loss is the sum over these pairs divided by 2 (P + 2 N), P
    and N being how many of them lose something, and the levels' losses are added.

    The number printed by the authors' code is (sum_P + 2 sum_N) / (P + 2 N); the gradient that it applies is that of
    the formula above, which is why this is it. Positive pairs of equal embeddings (D = 0) are left out before shares
    are taken, as there. Holds O(m^2) numbers.

    Args:
        groups: numbers in the embedding of each level. Filled in from the embedder.
        ratios: the share of pairs that each level keeps, in (0, 1]; the authors' for SOP are [0.5, 0.25, 0.1].
        margin: squared distance at which a negative pair is far enough, > 0.
        factor: weight of a negative pair, > 0.
        cascaded: a level chooses from the pairs that the level before kept, as in the paper's text; false: from all
            pairs, as in the authors' code.

    Raises:
        ValueError: there are not as many ratios as groups, or a number is out of its range.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        groups: Groups,
        ratios: Sequence[Annotated[float, Interval(gt=0, le=1)]] = (1.0, 0.5, 0.2),
        margin: Annotated[float, Gt(0)] = 1.0,
        factor: Annotated[float, Gt(0)] = 10.0,
        cascaded: bool = False,
    ) -> None:
        super().__init__()
        self.groups = require_groups(groups)
        wanted = f"a share in (0, 1] for each of the {len(groups)} groups of the embedder"
        fits = len(ratios) == len(groups) and all(0 < ratio <= 1 for ratio in ratios)
        require(fits, "loss.ratios", list(ratios), wanted)
        require(margin > 0, "loss.margin", margin, "greater than 0")
        require(factor > 0, "loss.factor", factor, "greater than 0")
        self.ratios, self.margin, self.factor, self.cascaded = tuple(ratios), margin, factor, cascaded

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, sum(groups)], labels [m] -> scalar."""
        value, m = zero(embeddings), len(labels)
        pairs = torch.triu_indices(m, m, offset=1, device=labels.device)
        for part, ratio in zip(parts_of(embeddings, self.groups), self.ratios, strict=True):
            z = unit(part)
            kept = self._hardest(z.detach(), labels, pairs, ratio)
            value = value + self._level(z, labels, kept)
            if self.cascaded:
                pairs = kept
        return value

    @torch.no_grad()
    def _hardest(self, z: Tensor, labels: Tensor, pairs: Tensor, ratio: float) -> Tensor:
        """Of pairs [2, p] those that a level keeps [2, k]: positive ones, then negative ones, the hardest first."""
        i, j = pairs
        squared = rowwise(z, lambda rows, squared: squared)[i, j] if len(z) else z.new_zeros(0)
        same = labels[i] == labels[j]
        kept = []
        for mask, hardness in ((same & (squared > _SAME), squared), (~same, -squared)):
            own = mask.nonzero()[:, 0]
            count = int(ratio * len(own))
            if count < len(own):
                own = own[hardness[own].argsort(descending=True, stable=True)[:count]]
            kept.append(own)
        return pairs[:, torch.cat(kept)]

    def _level(self, z: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
        i, j = pairs
        squared = distance_to(z, i, j[None])[0].square()
        same, room = labels[i] == labels[j], self.margin - squared
        loses = torch.where(same, squared > _SAME, room > _AT_MARGIN)
        each = torch.where(loses, torch.where(same, squared, self.factor * room), 0)
        count = loses.sum() + (loses & ~same).sum()
        return each.sum() / (2 * count).clamp_min(1)
