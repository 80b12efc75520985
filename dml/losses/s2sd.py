"""Simultaneous similarity-based self-distillation (S2SD), Roth, Milbich, Ommer, Cohen and Ghassemi (2021).

arXiv:2009.08348.
"""

import copy
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.groups import Groups, parts_of, require_groups
from dml.losses.building_blocks.proxies import product


class S2SDLoss(nn.Module):
    """A small embedding learns from larger ones of the same features, which are trained with it and then left out.

    Each target is two layers of the features, trained by the same loss. Of the cosines of a batch the softmax of each
    row, of the embedding and of a target without gradient, are compared: with T the temperature

    L = (loss of the embedding + mean loss of the targets) / 2 + weight * mean over targets of KL(target | embedding)
        + feature_weight * KL(features | embedding), the last one from a step on,

    KL(B | A) = T^2 / m sum_ij softmax(B / T)_ij (log softmax(B / T)_ij - log softmax(A / T)_ij). An image's cosine with
    itself counts too, as in the authors' code. Embedding and targets are normalised. Holds O(m^2) numbers.

    Args:
        loss: any loss without weights of its own; the embedding and each target have a copy.
        groups: widths of the embedding and of the features. Filled in from the embedder.
        targets: sizes of the larger embeddings.
        temperature: of the softmax that is compared; the smaller, the sharper, > 0.
        weight: of learning from the targets, 0 or greater.
        feature_weight: of learning from the features, 0 or greater.
        feature_step: the step from which the features teach.

    Raises:
        ValueError: a number is out of its range, or there are not two groups.
    """

    min_samples_per_class = 1  # the inner loss has its own
    takes_copies = True

    def __init__(
        self,
        *,
        loss: nn.Module,
        groups: Groups,
        targets: Sequence[Annotated[int, Gt(0)]] = (512, 1024, 1536, 2048),
        temperature: Annotated[float, Gt(0)] = 1.0,
        weight: Annotated[float, Ge(0)] = 50.0,
        feature_weight: Annotated[float, Ge(0)] = 50.0,
        feature_step: Annotated[int, Ge(0)] = 1000,
    ) -> None:
        super().__init__()
        self.groups = require_groups(groups)
        require(len(groups) == 2, "loss.groups", list(groups), "two, as embedder=with_features gives")
        require(len(targets) > 0 and min(targets) > 0, "loss.targets", list(targets), "one or more, greater than 0")
        require(temperature > 0, "loss.temperature", temperature, "greater than 0")
        require(weight >= 0, "loss.weight", weight, "0 or greater")
        require(feature_weight >= 0, "loss.feature_weight", feature_weight, "0 or greater")
        require(feature_step >= 0, "loss.feature_step", feature_step, "0 or greater")
        self.losses = nn.ModuleList(copy.deepcopy(loss) for _ in range(1 + len(targets)))
        self.targets = nn.ModuleList(
            nn.ModuleList([nn.Linear(groups[1], width), nn.Linear(width, width)]) for width in targets
        )
        self.temperature, self.weight = temperature, weight
        self.feature_weight, self.feature_step, self.step = feature_weight, feature_step, 0

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Columns [m, d + C], labels [m] -> scalar; a call in training counts as a step."""
        small, features = parts_of(embeddings, self.groups)
        z = unit(small)
        mine, *others = self.losses
        log_rows = self._rows(z)
        losses, lessons = [], []
        layers: Any = self.targets
        for (first, second), loss in zip(layers, others, strict=True):
            hidden = F.linear(features, first.weight.to(features), first.bias.to(features)).relu()
            target = unit(F.linear(hidden, second.weight.to(features), second.bias.to(features)))
            losses.append(loss(target, labels))
            lessons.append(self._divergence(self._rows(target.detach()), log_rows))
        value = (mine(z, labels) + torch.stack(losses).mean()) / 2 + self.weight * torch.stack(lessons).mean()
        if self.step >= self.feature_step:
            rows = self._rows(unit(features).detach())
            value = value + self.feature_weight * self._divergence(rows, log_rows)
        self.step += self.training
        return value

    def _rows(self, z: Tensor) -> Tensor:
        """The log softmax of the rows of cosines."""
        return F.log_softmax(product(z, z) / self.temperature, dim=1)

    def _divergence(self, teacher: Tensor, pupil: Tensor) -> Tensor:
        return self.temperature**2 * F.kl_div(pupil, teacher, reduction="batchmean", log_target=True)

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint carries beside the weights."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Go on from there."""
        self.step = state["step"]
