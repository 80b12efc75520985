"""Contrastive loss, Hadsell, Chopra and LeCun (2006); eq. 1 of the NRA paper."""

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import reading_waits
from dml.losses.building_blocks.pairwise import distance_to, is_small, root, row_blocks
from dml.losses.building_blocks.rowwise import sum_over_rows
from dml.products import matmul

_FEW = 32  # pairs for each embedding up to which listing them is faster than weighing the whole matrix


class ContrastiveLoss(nn.Module):
    """Mean over all unordered pairs of the batch: D^2 for a positive pair, max(0, margin - D)^2 for a negative one.

    Args:
        margin: distance (or squared distance) at which a negative pair is far enough, > 0.
        hinge: "distance": as above; "squared": max(0, margin - D^2) for a negative pair, as in ABE (Kim et al. 2018).

    Raises:
        ValueError: margin is not positive, or hinge is unknown.
    """

    min_samples_per_class = 2

    def __init__(
        self, *, margin: Annotated[float, Gt(0)] = 1.0, hinge: Literal["distance", "squared"] = "distance"
    ) -> None:
        super().__init__()
        require(margin > 0, "loss.margin", margin, "greater than 0")
        require(hinge in ("distance", "squared"), "loss.hinge", hinge, "distance or squared")
        self.margin, self.hinge = margin, hinge

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        m = len(embeddings)
        if m < 2:
            return zero(embeddings)
        count = (m * (m - 1)) // 2 if anchors is None else anchors * (m - 1)
        if (pairs := self._pairs(embeddings, labels, anchors)) is not None:
            d = distance_to(embeddings, pairs[0], pairs[1][None])[0]
            same = labels[pairs[0]] == labels[pairs[1]]
            return torch.where(same, d.square(), self._room(d.square(), d)).sum() / count

        def terms(rows: Tensor, squared: Tensor) -> Tensor:
            same = labels[rows, None] == labels[None, :]  # with self, whose distance is 0
            return torch.where(same, squared, self._room(squared, root(squared))).sum(dim=1)

        if anchors is None:  # the matrix holds every unordered pair twice
            return sum_over_rows(embeddings, terms) / (2 * count)
        rows = torch.arange(anchors, device=labels.device)
        return sum_over_rows(embeddings, terms, rows=rows) / count

    def _room(self, squared: Tensor, d: Tensor) -> Tensor:
        """What negative pairs lose."""
        if self.hinge == "squared":
            return (self.margin - squared).clamp_min(0)
        return (self.margin - d).clamp_min(0).square()

    @torch.no_grad()
    def _pairs(self, x: Tensor, labels: Tensor, anchors: int | None) -> tuple[Tensor, Tensor] | None:
        """The pairs that have a term: those of a class, and those within the margin; None if they are very many."""
        if is_small(x) or reading_waits(x.device):
            return None
        x = x - x.mean(dim=0)
        norms = x.square().sum(dim=1)
        slack = (x.shape[1] + 8) * torch.finfo(x.dtype).eps * (norms.sqrt() + norms.max().sqrt()).square()
        reach = self.margin if self.hinge == "squared" else self.margin**2
        found: list[Tensor] = []
        for rows in row_blocks(x, torch.arange(len(x), device=x.device)[:anchors]):
            start = int(rows[0]) if anchors is None else 0  # a pair once
            squared = matmul(x[rows], -2 * x[start:], norms[start:]).add_(norms[rows, None])
            # What rounding leaves in question is in, and so is NaN.
            near = ~(squared > reach + slack[rows, None]) | (labels[rows, None] == labels[start:])
            row, column = near.nonzero().unbind(1)
            row, column = rows[row], column + start
            keep = row < column if anchors is None else row != column
            found.append(torch.stack([row[keep], column[keep]]))
            if sum(part.shape[1] for part in found) > _FEW * len(x):
                return None
        first, second = torch.cat(found, dim=1)
        return first, second
