"""Recall@k surrogate with SiMix, Patel, Tolias and Matas (2022), arXiv:2108.11179."""

import random
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import Row, sum_over_cosines, sum_over_products, unit, valid_anchors
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import on_host, positive_pairs, tell_host, to_device
from dml.losses.building_blocks.ranks import largest_class, members_before, without_anchor


class RecallAtKLoss(nn.Module):
    """1 - the mean over anchors with a positive, and over ks, of min(k, sum_i sig((k - rank_i) / T2)) / min(k, |P|):

    rank_i = 1 + sum_(j != i) sig((S_j - S_i) / T1) of a positive i, S the cosines to the anchor, j over the others of
    the batch. Embeddings are normalised inside.

    Args:
        ks: the values of k, each 1 or greater; a k larger than the batch is taken as its size.
        rank_temperature: T1 in the formula, softness of the ranks, > 0.
        k_temperature: T2 in the formula, softness of the comparison with k, > 0.
        count_query: leave the anchor in its own list, as the authors' code does, so that every rank is one too large.
        mixup: SiMix, in training only: for every pair of a class one more row a z_i + (1 - a) z_j of that class, a
            drawn from U(0, 1), is anchor and member.
        seed: of these draws, which depend on it and on the step's number alone.

    Raises:
        ValueError: there are no ks or one is below 1, or a temperature is not positive.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        ks: Sequence[Annotated[int, Gt(0)]] = (1, 2, 4, 8, 16),
        rank_temperature: Annotated[float, Gt(0)] = 0.01,
        k_temperature: Annotated[float, Gt(0)] = 1.0,
        count_query: bool = False,
        mixup: bool = False,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__()
        require(len(ks) > 0 and min(ks) > 0, "loss.ks", list(ks), "one or more numbers, each 1 or greater")
        require(rank_temperature > 0, "loss.rank_temperature", rank_temperature, "greater than 0")
        require(k_temperature > 0, "loss.k_temperature", k_temperature, "greater than 0")
        require(seed >= 0, "loss.seed", seed, "0 or greater")
        self.ks, self.rank_temperature, self.k_temperature = tuple(ks), rank_temperature, k_temperature
        self.count_query, self.mixup, self.seed = count_query, mixup, seed
        self.step = 0

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given.

        Raises:
            ValueError: anchors are given (by a memory), and mixup is on.
        """
        mixed = self.mixup and self.training
        require(not (mixed and anchors), "loss.mixup", self.mixup, "false where a memory gives the anchors")
        if mixed:
            return self._mixed(embeddings, labels)
        rows, _ = valid_anchors(labels, anchors, negatives=False)
        if len(rows) == 0:
            return zero(embeddings)
        return sum_over_cosines(embeddings, labels, self._term, rows, share=largest_class(labels)) / len(rows)

    def _mixed(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        values = on_host(labels)
        first, second = positive_pairs(labels, torch.arange(len(labels)))
        first, second = pairs = torch.stack([first, second])[:, first < second]
        # Of a seed, torch's generator takes 32 bits.
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.step}").getrandbits(32))
        self.step += 1
        if len(first) == 0:
            return zero(embeddings)
        z = unit(embeddings)
        share = to_device(torch.rand(len(first), generator=generator), z.device).to(z)[:, None]
        values = torch.cat([values, values[first]])
        first, second = to_device(pairs, z.device)
        z = torch.cat([z, share * z[first] + (1 - share) * z[second]])
        labels = torch.cat([labels, labels[first]])
        tell_host(labels, values)
        rows, _ = valid_anchors(labels, None, negatives=False)
        missing = 1 - z.square().sum(dim=1)
        total = sum_over_products(z, missing, labels, self._term, rows, share=largest_class(labels))
        return total / len(rows)

    def _term(self, row: Row) -> Tensor:
        others = row.values if self.count_query else without_anchor(row)
        rank = 0.5 + members_before(row.positives, others, self.rank_temperature)  # itself is a half
        counts, parts = row.real.sum(dim=1), []
        for each in self.ks:
            k = min(each, row.values.shape[1])
            found = torch.where(row.real, ((k - rank) / self.k_temperature).sigmoid(), 0).sum(dim=1)
            parts.append(found.clamp_max(k) / counts.clamp_max(k))
        return 1 - torch.stack(parts).mean(dim=0)

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint carries: the number of the step, by which mixup draws."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Go on from there."""
        self.step = state["step"]
