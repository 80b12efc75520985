"""Clustering loss by facility location, Song, Jegelka, Rathod and Murphy (2017), arXiv:1612.01213."""

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.host import on_host, read_with, to_device
from dml.losses.building_blocks.medoids import choose_medoids
from dml.losses.building_blocks.pairwise import distance_to, exact_distances


class ClusteringLoss(nn.Module):
    """max(0, F(S) + gamma (1 - NMI) - F*), F(S) = -sum_i min_(s in S) D_is: a sum over the batch, no mean.

    S are as many medoids as there are classes in the batch, chosen greedily and by PAM to make F(S) + gamma (1 - NMI)
    large, NMI that of the classes and of the clusters around them. F* = -sum over classes of the distances to the
    member nearest to all others. The gradient is that of the distances with S held. Embeddings are normalised inside.

    Args:
        gamma: weight of the NMI, 0 or greater; distances are summed, so a larger batch needs a larger one.
        gamma_decay: gamma is multiplied by this after each decay_steps steps of training, > 0.
        decay_steps: how many steps, > 0; an epoch in the known recipe. None: after every step.
        pam_iterations: how many rounds of exchanges (PAM) improve the medoids, 0 or greater.

    Raises:
        ValueError: one of them is out of its range.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        gamma: Annotated[float, Ge(0)] = 1.0,
        gamma_decay: Annotated[float, Gt(0)] = 1.0,
        decay_steps: Annotated[int, Gt(0)] | None = None,
        pam_iterations: Annotated[int, Ge(0)] = 5,
    ) -> None:
        super().__init__()
        require(gamma >= 0, "loss.gamma", gamma, "0 or greater")
        require(gamma_decay > 0, "loss.gamma_decay", gamma_decay, "greater than 0")
        require(decay_steps is None or decay_steps > 0, "loss.decay_steps", decay_steps, "greater than 0, or null")
        require(pam_iterations >= 0, "loss.pam_iterations", pam_iterations, "0 or greater")
        self.gamma, self.gamma_decay = gamma, gamma_decay
        self.decay_steps, self.pam_iterations = decay_steps or 1, pam_iterations
        self.step = 0

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; a call in training counts as a step."""
        gamma = self.gamma * self.gamma_decay ** (self.step // self.decay_steps)
        self.step += self.training
        # float32 would decide between medoids by its last bits; Apple's GPUs have nothing else.
        z = unit(embeddings if embeddings.device.type == "mps" else embeddings.double())
        medoid, best, nmi = self._choose(z.detach(), labels, gamma)
        members = torch.arange(len(labels), device=labels.device)
        to_medoid, to_best = distance_to(z, members, torch.stack([medoid, best]))
        gaps = torch.where(medoid == best, 0, to_best - to_medoid)
        return (gaps.sum() + gamma * (1 - nmi)).clamp_min(0)

    @torch.no_grad()
    def _choose(self, z: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor, float]:
        """Of each member its medoid, and the member nearest to all others of its class; and the NMI."""
        d = read_with(labels, exact_distances(z, z).nan_to_num(0)).numpy()
        own = on_host(labels).unique(return_inverse=True)[1].numpy()
        chosen, place, nmi = choose_medoids(d, own, gamma, self.pam_iterations)
        best = np.empty_like(place)
        for label in range(len(chosen)):
            members = np.flatnonzero(own == label)
            best[members] = members[d[np.ix_(members, members)].sum(axis=1).argmin()]
        medoids, bests = (to_device(torch.from_numpy(each), labels.device) for each in (chosen[place], best))
        return medoids, bests, nmi

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint carries: the number of the step, which gamma depends on."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Go on from there."""
        self.step = state["step"]
