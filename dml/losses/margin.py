"""Margin loss with distance-weighted sampling, Wu, Manmatha, Smola and Krähenbühl (ICCV 2017), arXiv:1706.07567."""

import random
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import anchors_on_host, unit
from dml.losses.building_blocks.contract import full_precision, require, zero
from dml.losses.building_blocks.host import positive_pairs, to_device
from dml.losses.building_blocks.pairwise import distance_to, masks
from dml.losses.building_blocks.proxies import require_classes
from dml.losses.building_blocks.rowwise import rowwise


class MarginLoss(nn.Module):
    """Sum over triplets of [alpha + D_p - beta]+ + [alpha + beta - D_n]+ + nu beta, over the number of hinges above 0.

    Every positive of an anchor gives a triplet, with a negative of its own that is drawn with weights 1 / q(D_n), q the
    density of distances on the sphere: drawn uniformly, nearly all negatives would be sqrt(2) away. beta is that of the
    anchor's class, and is learnt: owns `beta` [num_classes]. D are distances on the sphere: embeddings are normalised
    inside. Drawing has no gradient; an anchor without a positive or a negative has no triplet. Draws depend on the seed
    and on the number of the step alone; in evaluation mode the step stays.

    Args:
        num_classes: C; labels are 0 .. C - 1. Filled in from the data.
        alpha: half of the gap between positives and negatives, > 0.
        beta: first value of each class's boundary, which is learnt, > 0.
        nu: how strongly boundaries are kept small, 0 or greater.
        cutoff: negatives nearer than this are as likely as those at this distance; less than upper.
        upper: negatives farther than this are not drawn; an anchor that has only such draws any of them.
        seed: of the random choice of negatives.

    Raises:
        ValueError: a number is out of its range.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Gt(0)],
        alpha: Annotated[float, Gt(0)] = 0.2,
        beta: Annotated[float, Gt(0)] = 1.2,
        nu: Annotated[float, Ge(0)] = 0.0,
        cutoff: Annotated[float, Interval(gt=0, lt=2)] = 0.5,
        upper: Annotated[float, Interval(gt=0, lt=2)] = 1.4,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__()
        require(num_classes > 0, "loss.num_classes", num_classes, "greater than 0")
        require(alpha > 0, "loss.alpha", alpha, "greater than 0")
        require(beta > 0, "loss.beta", beta, "greater than 0")
        require(nu >= 0, "loss.nu", nu, "0 or greater")
        require(
            0 < upper < 2, "loss.upper", upper, "greater than 0 and less than 2, the largest distance on the sphere"
        )
        require(0 < cutoff < upper, "loss.cutoff", cutoff, f"greater than 0 and less than loss.upper={upper}")
        require(seed >= 0, "loss.seed", seed, "0 or greater")
        self.alpha, self.nu, self.cutoff, self.upper, self.seed = alpha, nu, cutoff, upper, seed
        self.beta = nn.Parameter(torch.full((num_classes,), float(beta)))
        self.step = 0

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given.

        Raises:
            ValueError: a label is no class (looked at on a CPU only).
        """
        require_classes(labels, len(self.beta))
        anchor, positive, negative = self.draw(embeddings, labels, anchors=anchors)
        self.step += self.training
        if len(anchor) == 0:
            return zero(embeddings)
        to_positive, to_negative = distance_to(unit(embeddings), anchor, torch.stack([positive, negative]))
        beta = self.beta.to(embeddings.dtype)[labels[anchor]]
        hinges = torch.stack([to_positive - beta, beta - to_negative]).add(self.alpha).clamp_min(0)
        count = (hinges > 0).sum()
        return torch.where(count > 0, hinges.sum() + self.nu * beta.sum(), zero(embeddings)) / count.clamp_min(1)

    @torch.no_grad()
    def draw(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """The triplets of this step for embeddings [m, d], labels [m]: (anchor, positive, negative), [3, t]."""
        rows, counts = anchors_on_host(labels, anchors)
        if len(rows) == 0:
            return labels.new_zeros(3, 0)
        place, positive = positive_pairs(labels, rows)
        number = torch.arange(len(place)) - (counts.cumsum(0) - counts)[place]
        # Of a seed, torch's generator takes 32 bits.
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.step}").getrandbits(32))
        numbers = torch.rand(len(rows), int(counts.max()), generator=generator, dtype=torch.float64)
        triplets = torch.stack([rows[place], positive, place, number])
        rows, numbers, triplets = (to_device(each, labels.device) for each in (rows, numbers, triplets))
        own_place = rows.new_zeros(len(labels)).index_copy(0, rows, torch.arange(len(rows), device=labels.device))

        def terms(own: Tensor, squared: Tensor) -> Tensor:
            running = self._weigh(own, squared, labels, embeddings.shape[1]).double().cumsum(dim=1)
            # The first member at which the running sum exceeds the number; what weighs nothing never is.
            sums = running[:, -1:]
            wanted = torch.minimum(numbers[own_place[own]] * sums, sums.nextafter(-sums))
            return torch.searchsorted(running, wanted, right=True).clamp_max(len(labels) - 1)

        anchor, positive, place, number = triplets
        return torch.stack([anchor, positive, rowwise(unit(embeddings), terms, rows=rows)[place, number]])

    @torch.no_grad()
    def weights(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The probabilities [m, m] by which an anchor, a row, draws each negative; zeros where there is none."""
        found = rowwise(unit(embeddings), lambda own, squared: self._weigh(own, squared, labels, embeddings.shape[1]))
        return found / found.sum(dim=1, keepdim=True).clamp_min(1)  # the largest of a row weighs 1

    def _weigh(self, rows: Tensor, squared: Tensor, labels: Tensor, dim: int) -> Tensor:
        """The weights [b, m] of the negatives of some rows, the largest of a row 1; 0 for all that cannot be drawn."""
        _, negative = masks(labels, rows)
        near = negative & (squared < self.upper**2)
        drawable = torch.where(near.any(dim=1, keepdim=True), near, negative)
        # -log q, q(D) = D^(d - 2) (1 - D^2 / 4)^((d - 3) / 2); the largest is taken of what can be drawn alone.
        inside = squared.clamp(self.cutoff**2, self.upper**2)
        rarity = -((dim - 2) / 2) * inside.log() - ((dim - 3) / 2) * torch.log1p(-inside / 4)
        rarity = rarity.masked_fill(~drawable, -torch.inf)
        weight = (rarity - rarity.amax(dim=1, keepdim=True)).exp()
        return torch.where(drawable, weight, 0)

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint carries beside beta: the number of the step, by which negatives are drawn."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Go on from there."""
        self.step = state["step"]
