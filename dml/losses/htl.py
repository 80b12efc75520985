"""Hierarchical triplet loss (HTL), Ge, Huang, Dong and Scott (2018), arXiv:1810.06951."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.hierarchy import ClassDistances, thresholds_of, tree_of
from dml.losses.building_blocks.anchors import unit, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import Positives
from dml.losses.building_blocks.rowwise import sum_over_rows


class HTLLoss(nn.Module):
    """Half of the mean over all triplets of max(0, D_ap^2 - D_an^2 + margin), on the sphere, with margins of a tree.

    The margin of an anchor of class a and a negative of class n is beta + d_H(a, n) - s_a: d_H is the threshold of the
    level of the tree at which the two classes share a node, s_a the mean squared distance within a. The tree is built
    anew before each epoch of the embeddings of the whole training set (dml/hierarchy.py); without one, as outside of a
    training, the margin is beta.

    Args:
        num_classes: number of training classes; labels are 0 .. num_classes - 1. Filled in from the data.
        beta: added to every margin, 0 or greater.
        depth: levels of the tree, > 0.
        average: "all": the mean over all triplets, as in the paper's formula; "active": over those with a loss above 0.

    Raises:
        ValueError: a number is out of its range.
    """

    min_samples_per_class = 2
    thresholds: Tensor
    nodes: Tensor
    spread: Tensor

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Gt(0)],
        beta: Annotated[float, Ge(0)] = 0.1,
        depth: Annotated[int, Gt(0)] = 16,
        average: Literal["all", "active"] = "all",
    ) -> None:
        super().__init__()
        require(num_classes > 0, "loss.num_classes", num_classes, "greater than 0")
        require(beta >= 0, "loss.beta", beta, "0 or greater")
        require(depth > 0, "loss.depth", depth, "greater than 0")
        require(average in ("all", "active"), "loss.average", average, "all or active")
        self.beta, self.depth, self.average = beta, depth, average
        self.register_buffer("thresholds", torch.zeros(depth + 1))
        self.register_buffer("nodes", torch.zeros(depth + 1, num_classes, dtype=torch.int64))
        self.register_buffer("spread", torch.zeros(num_classes))

    @torch.no_grad()
    def see_training_set(self, embeddings: Tensor, labels: Tensor) -> None:
        """Build the tree of all training classes, embeddings [N, D] and labels [N]."""
        distances = ClassDistances(embeddings, labels, self.nodes.shape[1])
        thresholds = thresholds_of(distances, self.depth)
        self.nodes.copy_(tree_of(distances, thresholds))
        self.thresholds.copy_(thresholds)
        self.spread.copy_(distances.spread)

    def margins(self, anchors: Tensor, others: Tensor) -> Tensor:
        """Classes [b] and [m] -> margins [b, m] in float64; those of a class and itself are of no use."""
        nodes = self.nodes[:, anchors, None] != self.nodes[:, None, others]
        level = nodes.sum(dim=0)  # nodes are in each other: they differ up to where they are the same
        spread = self.spread.double()[anchors, None]
        return self.beta + self.thresholds.double()[level] - spread

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given.

        Raises:
            ValueError: a label is no class (looked at on a CPU only).
        """
        if labels.device.type == "cpu":
            low, high = (int(each) for each in labels.aminmax())
            count = self.nodes.shape[1]
            require(low >= 0 and high < count, "loss.num_classes", count, f"above all labels, {low} to {high} here")
        rows, positives = valid_anchors(labels, anchors)
        if len(rows) == 0:
            return zero(embeddings)
        members = Positives(labels)

        def hinges(own: Tensor, squared: Tensor) -> Tensor:
            columns, real = members.of(own)
            margin = self.margins(labels[own], labels).to(squared)
            room = squared.gather(1, columns)[:, :, None] + (margin - squared)[:, None]
            return torch.where(real[:, :, None] & members.negative(own)[:, None], room, 0).clamp_min(0)

        z = unit(embeddings)
        total = sum_over_rows(
            z, lambda own, squared: hinges(own, squared).sum(dim=(1, 2)), rows=rows, share=members.largest
        )
        if self.average == "all":
            negatives = len(labels) - 1 - positives
            return total / (2 * (positives * negatives).sum())
        with torch.no_grad():
            active = sum_over_rows(
                z.detach(),
                lambda own, squared: (hinges(own, squared) > 0).sum(dim=(1, 2)).to(squared),
                rows=rows,
                share=members.largest,
            )
        return total / (2 * active).clamp_min(1)
