"""Batches of random images, for losses that ask nothing of a batch: those with proxies or a classifier."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge

from dml.samplers.groups import GroupSampler


class ShuffledSampler(GroupSampler):
    """Batch sampler of `size` different images, whatever their classes.

    Epoch: floor(N / size) batches of a shuffled list of all images, whose rest is left out. Seeds, processes and resume
    are those of the base, for which each image is a class of its own here.

    Args:
        size: images of a batch.
        labels: [N] class of each image; only their number counts.
        seed: of the draw.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: a batch is larger than the training set, or smaller than the number of processes, or the seed is
            negative; names the config key.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Ge(1)],
        labels: Sequence[int],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 1 <= size <= len(labels):
            wanted = f"from 1 to the {len(labels)} images of the training set"
            raise ValueError(f"sampler.size={size} is not possible: it must be {wanted}")
        super().__init__(
            classes_per_batch=size,
            samples_per_class=1,
            labels=range(len(labels)),
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
