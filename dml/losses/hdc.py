"""Hard-aware deeply cascaded embedding (HDC), Yuan, Yang and Zhang (2017), arXiv:1611.05720."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.groups import Groups, parts_of, require_groups
from dml.losses.building_blocks.host import positive_pairs, reading_waits, to_device
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
        value, given = zero(embeddings), _all_pairs(labels)
        for part, ratio in zip(parts_of(embeddings, self.groups), self.ratios, strict=True):
            z = unit(part)
            kept = self._hardest(z.detach(), given, ratio)
            value = value + self._level(z, *kept)
            if self.cascaded:
                given = kept
        return value

    @torch.no_grad()
    def _hardest(self, z: Tensor, given: tuple["_Pairs", "_Pairs"], ratio: float) -> tuple["_Pairs", "_Pairs"]:
        """The positive and the negative pairs that a level keeps."""
        squared, (positive, negative) = rowwise(z, lambda rows, squared: squared), given
        of_positive = squared[positive.first, positive.second]
        positive = positive._replace(real=positive.real & (of_positive > _SAME))
        return (
            _share(positive, of_positive, ratio),
            _share(negative, -squared[negative.first, negative.second], ratio),
        )

    def _level(self, z: Tensor, positive: "_Pairs", negative: "_Pairs") -> Tensor:
        lost, counts = z.new_zeros(()), z.new_zeros((), dtype=torch.int64)
        for pairs, weight in ((positive, 1), (negative, 2)):
            squared = distance_to(z, pairs.first, pairs.second[None])[0].square()
            room = self.margin - squared
            loses = pairs.real & (squared > _SAME if weight == 1 else room > _AT_MARGIN)
            lost = lost + torch.where(loses, squared if weight == 1 else self.factor * room, 0).sum()
            counts = counts + weight * loses.sum()
        return lost / (2 * counts).clamp_min(1)


class _Pairs(NamedTuple):
    """Pairs of the batch, [p] each; those that are not real do not count."""

    first: Tensor
    second: Tensor
    real: Tensor


def _all_pairs(labels: Tensor) -> tuple[_Pairs, _Pairs]:
    """All positive and all negative pairs i < j, in the order of the batch."""
    m = len(labels)
    first, second = positive_pairs(labels, torch.arange(m))
    positive = to_device(torch.stack([first, second])[:, first < second], labels.device)
    others = (labels[:, None] != labels).triu(1)
    negative = torch.nonzero_static(others, size=m * (m - 1) // 2 - positive.shape[1]).T
    return _of(positive), _of(negative)


def _of(pairs: Tensor) -> _Pairs:
    return _Pairs(pairs[0], pairs[1], torch.ones_like(pairs[0], dtype=torch.bool))


def _share(pairs: _Pairs, hardness: Tensor, ratio: float) -> _Pairs:
    """The hardest int(ratio * count) of the pairs that are real, the hardest first; all of them in their order."""
    count, room = pairs.real.sum(), int(ratio * len(hardness))
    if room == len(hardness):
        return pairs
    order = hardness.masked_fill(~pairs.real, -torch.inf).argsort(descending=True, stable=True)[:room]
    # Of the device float64 gives the same number, unread.
    kept = (ratio * count.double()).long() if reading_waits(count.device) else int(ratio * int(count))
    real = torch.arange(room, device=order.device) < kept
    return _Pairs(pairs.first[order], pairs.second[order], real)
