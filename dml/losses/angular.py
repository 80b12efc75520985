"""Angular loss, Wang, Zhou, Wen, Liu and Lin (2017), arXiv:1708.01682."""

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml.losses.building_blocks.anchors import softplus, unit, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import on_host, to_device
from dml.losses.building_blocks.pairwise import block_entries
from dml.losses.building_blocks.proxies import product

LARGEST_ALPHA = 65  # beyond it e^(8 tan^2 alpha), which the products below may need, comes near the end of float32


class AngularLoss(nn.Module):
    """Mean over ordered positive pairs (a, p) of log(1 + sum_n e^f_apn), n over all members of other classes:

    f_apn = 4 t (z_a + z_p) z_n - 2 (1 + t) z_a z_p with t = tan^2 alpha: the angle at the negative n of the triangle of
    the three is to be less than alpha. Pairs without a negative are left out. Embeddings are normalised inside.

    Args:
        alpha: the angle, in degrees; the paper tries 36 to 55.

    Raises:
        ValueError: alpha is out of its range.
    """

    min_samples_per_class = 2

    def __init__(self, *, alpha: Annotated[float, Gt(0), Le(LARGEST_ALPHA)] = 45.0) -> None:
        super().__init__()
        wanted = f"greater than 0 and at most {LARGEST_ALPHA} degrees, as e^(4 tan^2 alpha) overflows beyond"
        require(0 < alpha <= LARGEST_ALPHA, "loss.alpha", alpha, wanted)
        self.alpha = alpha

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        _, positives = valid_anchors(labels, anchors)
        if len(positives) == 0:
            return zero(embeddings)
        z, limit = unit(embeddings), len(labels) if anchors is None else anchors
        blocks = [
            checkpoint(self._pairs, z, labels, members, limit, use_reentrant=False, preserve_rng_state=False)
            for members in _classes(z, labels, limit)
        ]
        return torch.stack(blocks).sum() / positives.sum()

    def _pairs(self, z: Tensor, labels: Tensor, members: Tensor, limit: int) -> Tensor:
        """The sum of the terms of the pairs of some classes, whose members are [c, n]."""
        t = math.tan(math.radians(self.alpha)) ** 2
        cosines = product(z[members.flatten()], z).unflatten(0, members.shape)  # [c, n, m]
        same = labels[members[:, :1]] == labels
        reach = (4 * t * cosines).masked_fill(same[:, None], -torch.inf)
        top = reach.detach().amax(dim=2, keepdim=True)
        # sum_n e^(4t (S_an + S_pn)) is a product of the rows of a and p, so that no triplet is ever listed.
        shares = (reach - top).exp()
        pushed = product(shares, shares).log() + top + top.mT
        own = cosines.gather(2, members[:, None].expand(-1, members.shape[1], -1))
        pairs = (members[:, :, None] != members[:, None]) & (members < limit)[:, :, None]
        return torch.where(pairs, softplus(pushed - 2 * (1 + t) * own), 0).sum()


def _classes(z: Tensor, labels: Tensor, limit: int) -> Iterator[Tensor]:
    """Members [c, n] of all classes with two or more of them, one before the limit, and others beside them; in blocks
    of classes of one size."""
    _, own, sizes = on_host(labels).unique(return_inverse=True, return_counts=True)
    order, ends = own.argsort(stable=True), sizes.cumsum(0)
    for n in sizes.unique().tolist():
        if not 1 < n < len(labels):
            continue
        starts = (ends - sizes)[sizes == n]
        members = order[starts[:, None] + torch.arange(n)]
        members = members[(members < limit).any(dim=1)]
        if len(members):
            yield from to_device(members, z.device).split(max(1, block_entries(z) // (n * len(z))))
