"""Classes with those that are hard to tell from them, the batches of HTL (Ge et al. 2018, arXiv:1810.06951)."""

from collections.abc import Container, Iterable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from dml.hierarchy import ClassDistances, nearest_classes
from dml.samplers.groups import GroupSampler


class NeighbourSampler(GroupSampler):
    """As GroupSampler, but each class that is drawn brings the classes nearest to it along.

    Near are classes whose images have a small mean squared distance on the sphere, of the embeddings of the whole
    training set before the epoch. Until these were seen, batches are those of GroupSampler. Every class is drawn in its
    turn; one that came along keeps its turn, and is not twice in a batch.

    Args:
        classes_per_batch: of the whole batch; about classes_per_batch / (1 + neighbours) of them are drawn.
        samples_per_class, labels, seed, rank, world_size: as of GroupSampler.
        neighbours: how many classes come along with each.

    Raises:
        ValueError: as GroupSampler, or neighbours is negative or as many as there are classes.
    """

    def __init__(
        self,
        *,
        classes_per_batch: Annotated[int, Ge(1)],
        samples_per_class: Annotated[int, Ge(1)],
        labels: Sequence[int],
        neighbours: Annotated[int, Ge(0)] = 3,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            classes_per_batch=classes_per_batch,
            samples_per_class=samples_per_class,
            labels=labels,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        if not 0 <= neighbours < len(self._members):
            raise ValueError(
                f"sampler.neighbours={neighbours} is not possible: it must be 0 or greater, and less than the "
                f"{len(self._members)} training classes"
            )
        self.neighbours = neighbours
        self._near: Tensor | None = None  # [C, neighbours]

    def see_training_set(self, embeddings: Tensor, labels: Tensor) -> None:
        """Find the nearest classes of each, embeddings [N, D] and labels [N]."""
        _, classes = labels.unique(return_inverse=True)
        self._near = nearest_classes(ClassDistances(embeddings, classes, len(self._members)), self.neighbours)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, and which classes are near each other."""
        return {**super().state_dict(), "near": self._near}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        super().load_state_dict(state)
        self._near = None if state["near"] is None else torch.as_tensor(state["near"])

    def _together(self, chosen: int, present: Container[int]) -> Iterable[int]:
        near = [] if self._near is None else self._near[chosen].tolist()
        return [chosen, *(one for one in near if one not in present)]
