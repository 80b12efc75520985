"""Position-dependent deep metric with quadruplets, Huang, Loy and Tang (2016), arXiv:1610.08904."""

from typing import Annotated, Any, Literal, get_args

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import on_host, positive_pairs, to_device
from dml.losses.building_blocks.pairwise import distance_to, pair_blocks
from dml.losses.building_blocks.proxies import product

Scope = Literal["batch", "class", "pair"]


class PDDMLoss(nn.Module):
    """E_m + embedding_weight * E_e of hard quadruplets (i, j, k, l), by a learnt similarity S of two embeddings.

    E_m = max(0, alpha + S_ik - S_ij) + max(0, alpha + S_jl - S_ij),
    E_e = max(0, beta + D^2_ij - D^2_ik) + max(0, beta + D^2_ij - D^2_jl), D distances of normalised embeddings.
    (i, j) is the positive pair of the least S, k and l the negatives that are most similar to i and j; of equal ones
    the first. Pairs without a negative are left out. S_ab of a and b on the sphere: u = |a - b| and v = (a + b) / 2 go
    through a linear layer and ReLU each and are normalised, both together through another one, c, and S = s(c). S is
    there in training only; images are compared by distances.

    There is no official code, and whether u is normalised before its layer too is not certain.

    Owns linear layers `u` and `v` [d, d], `c` [2 d, d] and `s` [d, 1], drawn by Xavier's rule, biases 0.

    Args:
        embedding_dim: d of the embeddings.
        alpha: margin of the learnt similarity, > 0.
        beta: margin of the squared distances, > 0.
        embedding_weight: weight of the distances' part E_e, 0 or greater.
        scope: batch: one quadruplet (the paper); class: the hardest of each class, and the mean; pair: of each positive
            pair, and the mean.
        dropout: of the learnt similarity's middle layer, in training; from 0 to less than 1.

    Raises:
        ValueError: one of them is out of its range.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        alpha: Annotated[float, Gt(0)] = 0.5,
        beta: Annotated[float, Gt(0)] = 1.0,
        embedding_weight: Annotated[float, Ge(0)] = 0.5,
        scope: Scope = "batch",
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__()
        require(embedding_dim > 0, "loss.embedding_dim", embedding_dim, "greater than 0")
        require(alpha > 0, "loss.alpha", alpha, "greater than 0")
        require(beta > 0, "loss.beta", beta, "greater than 0")
        require(embedding_weight >= 0, "loss.embedding_weight", embedding_weight, "0 or greater")
        require(scope in get_args(Scope), "loss.scope", scope, "batch, class or pair")
        require(0 <= dropout < 1, "loss.dropout", dropout, "from 0 to less than 1")
        self.alpha, self.beta, self.embedding_weight = alpha, beta, embedding_weight
        self.scope, self.dropout, self.embedding_dim = scope, dropout, embedding_dim
        self.u, self.v = (nn.Linear(embedding_dim, embedding_dim) for _ in "uv")
        self.c, self.s = nn.Linear(2 * embedding_dim, embedding_dim), nn.Linear(embedding_dim, 1)
        for layer in (self.u, self.v, self.c, self.s):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.step = 0

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim.
        """
        given = embeddings.shape[1]
        require(given == self.embedding_dim, "loss.embedding_dim", self.embedding_dim, f"the embeddings' {given}")
        self.step += self.training
        z = unit(embeddings)
        i, j, k, n = self._mine(z.detach(), labels)
        if len(i) == 0:
            # Processes wait for each other's gradients of all weights.
            return zero(embeddings) + sum(0 * weight.sum().to(z.dtype) for weight in self.parameters())
        ends = torch.stack([torch.cat([i, i, j]), torch.cat([j, k, n])])
        s_ij, s_ik, s_jn = self._drop(self._hidden(z, *ends)).chunk(3)
        d_ij, d_ik, d_jn = distance_to(z, ends[0], ends[1:])[0].square().chunk(3)
        of_s = (self.alpha + s_ik - s_ij).clamp_min(0) + (self.alpha + s_jn - s_ij).clamp_min(0)
        of_d = (self.beta + d_ij - d_ik).clamp_min(0) + (self.beta + d_ij - d_jn).clamp_min(0)
        return (of_s + self.embedding_weight * of_d).mean()

    def score(self, z: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """S [v] of pairs of rows of z [m, d], unit vectors, without dropout; the same in either order."""
        return _linear(self.s, self._hidden(z, first, second))[:, 0]

    def _hidden(self, z: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a, b = z[first], z[second]
        u = unit(_linear(self.u, (a - b).abs()).relu())
        v = unit(_linear(self.v, (a + b) / 2).relu())
        return _linear(self.c, torch.cat([u, v], dim=1)).relu()

    def _drop(self, c: Tensor) -> Tensor:
        """S of what is left of c by dropout, the same on every process: drawn by the number of the step."""
        if self.training and self.dropout:
            generator = torch.Generator().manual_seed(self.step)
            keep = torch.rand(c.shape, generator=generator) >= self.dropout
            c = c * to_device(keep, c.device) / (1 - self.dropout)
        return _linear(self.s, c)[:, 0]

    @torch.no_grad()
    def _mine(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Batch indices of the quadruplets, [q] each."""
        m = len(z)
        first, second = torch.triu_indices(m, m, 1, device=z.device)
        scores = z.new_empty(m, m)
        for part in pair_blocks(z, first):
            scores[first[part], second[part]] = self.score(z, first[part], second[part])
        same = labels[:, None] == labels
        scores = scores.triu(1)
        scores = scores + scores.T
        i, j, own = candidates = self._candidates(on_host(labels))
        groups = int(own.max()) + 1 if len(own) else 0
        i, j, own = to_device(candidates, z.device)
        if groups and self.scope != "pair":
            found, place = scores[i, j], torch.arange(len(i), device=z.device)
            least = found.new_full((groups,), torch.inf).scatter_reduce_(0, own, found, "amin")
            # Of equal ones the first.
            place = place.masked_fill(found > least[own], len(i))
            first = place.new_full((groups,), len(i)).scatter_reduce_(0, own, place, "amin")
            i, j = i[first], j[first]
        hardest = scores.masked_fill(same, -torch.inf).argmax(dim=1)
        return i, j, hardest[i], hardest[j]

    def _candidates(self, labels: Tensor) -> Tensor:
        """Positive pairs i < j that have a negative, and the number of the class (or batch) of each, [3, p]."""
        i, j = positive_pairs(labels, torch.arange(len(labels)))
        pairs = torch.stack([i, j, labels[i] * (self.scope != "batch")])[:, i < j]
        pairs[2] = pairs[2].unique(return_inverse=True)[1]
        return pairs[:, : 0 if (labels == labels[0]).all() else None]

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint carries: the number of the step, by which dropout draws."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Go on from there."""
        self.step = state["step"]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return product(x, layer.weight.to(x.dtype)) + layer.bias.to(x.dtype)
