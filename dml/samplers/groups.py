"""Uniform n-group sampling, the paper's batches: k classes x n images each (section III)."""

from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from torch.utils.data import Sampler

from dml.words import counted


class GroupSampler(Sampler[list[int]]):
    """Batch sampler of `classes_per_batch` (k) classes with `samples_per_class` (n) images each.

    Batch: k * n different images, class after class. A class with fewer than n images gives all it has, and more
    classes are added until the batch is full; the last one added may be cut short.
    Epoch: floor(N / (k * n)) batches, at least one. Classes come from a shuffled list of all classes that is used
    up before it is shuffled anew, and so do the images of a class: no class is drawn twice while another waits, and
    no image of a class while another image of it waits. As every class weighs the same, an epoch shows the images of
    small classes more often than those of large ones, and may leave some of the latter out.
    Seeds: the batches depend on `seed` and the epoch alone, not on any global random state, on the number of workers
    or of processes. `set_epoch(e)` chooses the epoch (0 at first) and goes to its beginning. Without it, iterating
    again after an epoch was used up draws the next one: a plain loop sees new batches each time, and the same ones when
    it is run again with the same seed.
    Processes: all of them draw the same global batch; rank r of W yields its r-th of W contiguous parts, whose sizes
    differ by one at most. The parts in the order of ranks are the batch of a single process.
    Resume: `state_dict()` holds seed, epoch and the batches of it already handed out; iterating after
    `load_state_dict()` hands out the rest, and so does iterating again after a loop that was left early.

    Args:
        classes_per_batch: k.
        samples_per_class: n.
        labels: [N] class of each image.
        seed: of the draw.
        rank: of this process.
        world_size: number of processes, W.

    Raises:
        ValueError: a batch cannot be filled from these labels, or they are no whole numbers, or the seed is negative;
            names the config key.
    """

    def __init__(
        self,
        *,
        classes_per_batch: Annotated[int, Ge(1)],
        samples_per_class: Annotated[int, Ge(1)],
        labels: Sequence[int],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        given = np.asarray(labels)
        if given.dtype.kind == "O" and all(isinstance(label, Integral) for label in given.flat):
            given = np.array([int(label) for label in given.flat]).reshape(given.shape)  # of pandas, for instance
        # Numpy makes floats of whole numbers beyond 64 bits, and one class of two that it rounds.
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
            raise ValueError(f"sampler.labels must be whole numbers [N], not {given.dtype} {list(given.shape)}")
        classes, inverse, sizes = np.unique(given, return_inverse=True, return_counts=True)
        self.batch_size = classes_per_batch * samples_per_class
        self.samples_per_class = samples_per_class
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.position = 0
        # Images of each class, in ascending order: [C] arrays.
        self._members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
        what = f"{counted(classes_per_batch, 'class')} x {counted(samples_per_class, 'image')}"
        for key, value in (("classes_per_batch", classes_per_batch), ("samples_per_class", samples_per_class)):
            if value < 1:
                raise ValueError(f"sampler.{key}={value} is not possible: it must be at least 1")
        if self.batch_size > len(labels):
            raise ValueError(
                f"a batch of {what} is larger than the training set of {counted(len(labels), 'image')}: "
                "lower sampler.classes_per_batch or sampler.samples_per_class"
            )
        if classes_per_batch > len(classes):
            raise ValueError(
                f"sampler.classes_per_batch={classes_per_batch} is more than the "
                f"{counted(len(classes), 'training class')}"
            )
        if np.minimum(sizes, samples_per_class).sum() < self.batch_size:
            raise ValueError(
                f"a batch of {what} cannot be filled: too many classes have fewer than "
                f"sampler.samples_per_class={samples_per_class} images (the smallest has {sizes.min()})"
            )
        if seed < 0:
            raise ValueError(f"sampler.seed={seed} is not possible: it must be 0 or greater")
        if not 0 <= rank < world_size <= self.batch_size:
            raise ValueError(f"rank {rank} of {world_size} processes cannot share a batch of {self.batch_size}")

    def __len__(self) -> int:
        """Batches of an epoch."""
        return max(1, sum(map(len, self._members)) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; going to the current one keeps the position that a resume restored."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands: seed, epoch, and how many batches of the epoch were handed out."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]

    def __iter__(self) -> Iterator[list[int]]:
        """Hand out the rest of the epoch: lists of this rank's indices."""
        epoch, start = self.epoch, self.position
        for number, batch in enumerate(self._epoch_batches()):
            if number >= start:
                if self.epoch == epoch:  # else someone went elsewhere, and counts there
                    # Counted before it is handed out: whoever holds the batch finds it counted.
                    self.position = number + 1
                yield np.array_split(batch, self.world_size)[self.rank].tolist()
        if self.epoch == epoch:
            self.epoch, self.position = epoch + 1, 0

    def _epoch_batches(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, self.epoch])
        waiting: deque[int] = deque()
        images: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(self._members)
        for _ in range(len(self)):
            groups: dict[int, np.ndarray] = {}
            passed_over: list[int] = []
            missing = self.batch_size
            while missing:
                if not waiting:
                    waiting.extend(rng.permutation(len(self._members)).tolist())
                chosen = waiting.popleft()
                if chosen in groups:
                    passed_over.append(chosen)
                    continue
                for one in self._together(chosen, groups):
                    count = min(self.samples_per_class, len(self._members[one]), missing)
                    if count:
                        groups[one], images[one] = self._take(rng, images[one], self._members[one], count)
                        missing -= count
            waiting.extendleft(reversed(passed_over))
            yield np.concatenate(list(groups.values()))

    def _together(self, chosen: int, present: Container[int]) -> Iterable[int]:
        """The classes that are added where one is drawn, which comes first; none that is there already."""
        return [chosen]

    @staticmethod
    def _take(
        rng: np.random.Generator, left: np.ndarray, members: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take `count` of the shuffled images `left`; when they run out, shuffle again with those just taken last."""
        taken, left = left[:count], left[count:]
        if len(taken) == count:
            return taken, left
        fresh = rng.permutation(members)
        fresh = np.concatenate([fresh[~np.isin(fresh, taken)], fresh[np.isin(fresh, taken)]])
        rest = count - len(taken)
        return np.concatenate([taken, fresh[:rest]]), fresh[rest:]
