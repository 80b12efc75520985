"""BIER and A-BIER: boosted groups of columns (Opitz, Waltner, Possegger and Bischof 2017; 2018, arXiv:1801.04815)."""

from itertools import combinations
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.anchors import softplus, unit
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.groups import Groups, parts_of, require_groups
from dml.losses.building_blocks.proxies import product


class BIERLoss(nn.Module):
    """Groups are learners of a boosted ensemble: a pair counts less with the later ones, the better the earlier do.

    Of every pair i != j, with the cosine s of a learner's columns, M = 1 for a positive pair and -cost for a negative
    one: the mean over learners k of w_k log(1 + e^(-alpha (s_k - beta) M)), weighted by 1 / #positives or
    1 / #negatives of the batch's ordered pairs, of which #positives counts every image with itself too (as the authors'
    code does). w_1 = 1. The weights of later learners come from a score a of those before, without a gradient:

    - boosting=simple: a = start + shrinkage * sum of alpha (s - beta) M; w = 1 / (1 + e^a), times negative_weight for
      negative pairs. The authors' default.
    - boosting=eta: a = (1 - v) a + v alpha (s - beta) M with v = 2 / (k + 2) at learner k = 0, 1, ...;
      w = 1 / (1 + e^a). The paper's algorithm.

    With adversarial > 0 (A-BIER) the embedder gives a copy of each learner's columns that is made from features without
    gradient (embedder.detached). For every two learners p < q a regressor g of two layers tells p's copy f_p from q's.
    The mean of (f_p * g(f_q))^2, by which they are alike, is made larger by g and smaller by both copies: the gradient
    is reversed there. Regressors are held to columns and biases of length 1 (weight_penalty); the embedder does the
    same to its own (embedder.unit_weights). Holds O(m^2) numbers for each learner.

    Args:
        groups: numbers in the embedding of each learner, then of their copies. Filled in from the embedder.
        alpha: sharpness of the loss of a pair, > 0.
        beta: cosine at which a pair begins to count.
        cost: weight of negative pairs, > 0; C in the paper.
        boosting: simple: as in the authors' code; eta: as in their paper.
        shrinkage: boosting=simple: how much each learner changes the score of a pair.
        start: boosting=simple: score of a pair before the first learner.
        negative_weight: boosting=simple: weight of negative pairs.
        adversarial: weight of the adversary and of the regressors' penalty, 0 or greater; 5e-5 in A-BIER.
        weight_penalty: weight of the regressors' penalty, times adversarial; 1e5 in A-BIER.
        hidden: width of the adversary's hidden layer.

    Raises:
        ValueError: a number is out of its range, or adversarial is asked of groups without copies.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        groups: Groups,
        alpha: Annotated[float, Gt(0)] = 2.0,
        beta: float = 0.5,
        cost: Annotated[float, Gt(0)] = 25.0,
        boosting: Literal["simple", "eta"] = "simple",
        shrinkage: Annotated[float, Interval(ge=0, le=1)] = 0.06,
        start: float = 0.5,
        negative_weight: Annotated[float, Gt(0)] = 2.0,
        adversarial: Annotated[float, Ge(0)] = 0.0,
        weight_penalty: Annotated[float, Ge(0)] = 0.0,
        hidden: Annotated[int, Gt(0)] = 512,
    ) -> None:
        super().__init__()
        self.groups = require_groups(groups)
        for key, value in {"alpha": alpha, "cost": cost, "negative_weight": negative_weight, "hidden": hidden}.items():
            require(value > 0, f"loss.{key}", value, "greater than 0")
        for key, value in {"adversarial": adversarial, "weight_penalty": weight_penalty}.items():
            require(value >= 0, f"loss.{key}", value, "0 or greater")
        require(0 <= shrinkage <= 1, "loss.shrinkage", shrinkage, "from 0 to 1")
        require(boosting in ("simple", "eta"), "loss.boosting", boosting, "simple or eta")
        self.alpha, self.beta, self.cost, self.boosting = alpha, beta, cost, boosting
        self.shrinkage, self.start, self.negative_weight = shrinkage, start, negative_weight
        self.adversarial, self.weight_penalty = adversarial, weight_penalty
        half = len(groups) // 2
        doubled = self.groups[:half] == self.groups[half:]
        said = "0, or embedder.detached=true, which makes copies of the groups for the adversary"
        require(not adversarial or doubled, "loss.adversarial", adversarial, said)
        self.regressors = nn.ModuleList(
            _Regressor(self.groups[q], hidden, self.groups[p])
            for p, q in combinations(range(half if adversarial else 0), 2)
        )

    @property
    def takes_copies(self) -> bool:
        """Whether it makes use of columns that are for training alone."""
        return self.adversarial > 0

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, sum(groups)], labels [m] -> scalar."""
        parts = parts_of(embeddings, self.groups)
        if not self.adversarial:
            return zero(embeddings) + self._boosted(parts, labels)
        half = len(parts) // 2
        return self._boosted(parts[:half], labels) + self.adversarial * self._adversary(parts[half:])

    def _boosted(self, learners: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        same = labels[:, None] == labels
        counted = 1 / torch.where(same, same.sum(), (~same).sum()).to(learners[0].dtype)
        counted.fill_diagonal_(0)
        sign = torch.where(same, 1.0, -self.cost).to(counted)
        # Stands for w = 1: of the first learner.
        score, weight, terms = torch.full_like(counted, self.start), counted, []
        for k, part in enumerate(learners):
            z = unit(part)
            margin = self.alpha * (product(z, z) - self.beta) * sign
            terms.append((weight * softplus(-margin)).sum())
            with torch.no_grad():
                if self.boosting == "simple":
                    score = score + self.shrinkage * margin
                    weight = counted * torch.sigmoid(-score) * torch.where(same, 1.0, self.negative_weight)
                else:
                    step = 2 / (k + 2)
                    score = (1 - step) * score + step * margin
                    weight = counted * torch.sigmoid(-score)
        return torch.stack(terms).mean()

    def _adversary(self, copies: tuple[Tensor, ...]) -> Tensor:
        total = copies[0].new_zeros(())
        regressors: Any = self.regressors
        for (p, q), regressor in zip(combinations(range(len(copies)), 2), regressors, strict=True):
            f, x = (2 * each.detach() - each for each in (copies[p], copies[q]))  # the gradient is reversed
            total = total - (f * regressor(x)).square().mean() + self.weight_penalty * regressor.penalty()
        return total


class _Regressor(nn.Module):
    """Two layers, from the columns of one learner to those of another."""

    def __init__(self, given: int, hidden: int, wanted: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(given, hidden), nn.Linear(hidden, wanted)

    def forward(self, x: Tensor) -> Tensor:
        """[m, given] -> [m, wanted], in the precision of x."""
        hidden = F.linear(x, self.first.weight.to(x), self.first.bias.to(x)).relu()
        return F.linear(hidden, self.second.weight.to(x), self.second.bias.to(x))

    def penalty(self) -> Tensor:
        """Of each layer the mean over columns of (|column|^2 - 1)^2, and what the bias is longer than 1, squared."""
        return sum(
            (
                (layer.weight.square().sum(dim=0) - 1).square().mean() + (layer.bias.square().sum() - 1).clamp_min(0)
                for layer in (self.first, self.second)
            ),
            start=self.first.weight.new_zeros(()),
        )
