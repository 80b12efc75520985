"""Smooth ranks of an anchor's positives: what losses of average precision and recall are made of.

Only positives need a rank, so m anchors with n positives each take O(m^2 n) time; a block holds n numbers for each
distance.
"""

import torch
from torch import Tensor

from dml.losses.building_blocks.anchors import Row
from dml.losses.building_blocks.host import on_host


def members_before(gaps: Tensor, others: Tensor, temperature: float) -> Tensor:
    """For each gap [b, n] the sum of sigmoid((S_j - S_i) / T) over the others [b, k], given as gaps 1 - S: [b, n].

    An infinite gap adds nothing, an equal one a half.
    """
    return ((gaps[:, :, None] - others[:, None, :]) / temperature).sigmoid().sum(dim=2)


def without_anchor(row: Row) -> Tensor:
    """The gaps [b, m] with infinity in the place of each anchor itself."""
    return row.values.scatter(1, row.anchor[:, None], torch.inf)


def with_anchor(row: Row) -> Row:
    """The row with the anchor itself as one more of its positives."""
    own = row.values.gather(1, row.anchor[:, None])
    real = torch.cat([row.real, torch.ones_like(row.real[:, :1])], dim=1)
    return row._replace(positives=torch.cat([row.positives, own], dim=1), real=real)


def largest_class(labels: Tensor) -> int:
    """How many numbers a loss of ranks holds for each distance, at most."""
    return int(on_host(labels).unique(return_counts=True)[1].max()) + 1
