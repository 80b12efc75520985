"""Loaders over a source; tells the sampler labels, seed, rank, world size and epoch."""

import hashlib
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset, dataloader, default_collate

from dml.engine.stop import in_data_worker


class _SeededBatches(Sampler[list[tuple[int, int]]]):
    """A batch sampler's indices, each with a seed for the random choices of its image.

    The seed depends on the run's seed, the epoch, the batch and the image alone: crops are the same with any number of
    workers and processes, and after a resume.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.sampler:
            # The sampler has counted this batch already when it hands it out.
            key = [self.seed, self.sampler.epoch, self.sampler.position]
            base = int(np.random.default_rng(key).integers(2**62))
            yield [(index, base + index) for index in batch]


def stack(items: list[tuple[Tensor, int, int]]) -> list[Tensor]:
    """Items to a batch, the images in channels last: as they come from `decode`, so that rows are copied whole.

    Stacked as [3, H, W], the same pixels take four times as long. Features [C] or [crops, C] are stacked as they are.
    """
    if items[0][0].ndim < 3:
        return default_collate(items)
    images, labels, indices = default_collate([(image.movedim(-3, -1), *rest) for image, *rest in items])
    return [images.movedim(-1, -3), labels, indices]


class ReadingAhead(DataLoader):
    """A loader without processes, whose next two batches are read by a thread while a step is at work.

    For images that cost little more than copying them: what a process reads it has to hand over, which takes longer.
    """

    def __iter__(self) -> Any:
        batches = super().__iter__()  # here, as it draws from this thread's generator
        return _ahead(batches, torch.cuda.current_device() if self.pin_memory else None)


def _ahead(batches: Iterator[Any], device: int | None) -> Iterator[Any]:
    def begin() -> None:
        torch.set_num_threads(1)  # the step has the others
        if device is not None:
            torch.cuda.set_device(device)

    with ThreadPoolExecutor(1, "reading ahead", begin) as reader:
        coming = deque(reader.submit(next, batches, None) for _ in range(2))
        while (batch := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, batches, None))
            yield batch


def cores() -> int:
    """How many this process may use."""
    # What the scheduler lets this process use, where the system can tell; the machine may have many more.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def out_of_shared_memory(error: BaseException | None) -> bool:
    """Whether an error came of shared memory that is full, through which loader processes hand over their batches.

    PyTorch says so in its own words where a batch does not fit, and guesses it where a process had a bus error.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if any(words in str(error) for words in ("shared memory(shm)", "out of shared memory", "</torch_")):
            return True
        error = error.__cause__ or error.__context__
    return False


def worker_died(error: BaseException | None) -> bool:
    """Whether an error came of a loader process that was killed or that crashed, however that was noticed.

    PyTorch says so at once by a signal, wherever this process then is; but more than half of the times a connection
    that breaks is noticed first.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error raised again may be its own context's cause
        seen.add(id(error))
        if "DataLoader worker (pid" in str(error):
            return True
        frames = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        if isinstance(error, ConnectionError | EOFError) and dataloader.__file__ in frames:
            return True
        error = error.__cause__ or error.__context__
    return False


class RetrievalData(pl.LightningDataModule):
    """Training batches by the sampler; validation and test images in order, each rank its share.

    Args:
        train, validation, test, gallery: torch data sets of (image, label, index); validation and gallery may be None.
        plain_train: the training images as test images are read, for parts that learn from the whole training set.
        labels: [N] of the training set, for the sampler.
        sampler: factory, (labels, seed, rank, world_size) -> batch sampler with an epoch, a position and a state.
        seed: of the batches and of the images' random choices.
        eval_batch_size: images per validation or test batch.
        workers: loader processes.
        own_index: [Q] where in the gallery the image of each test query is, which it must not find; -1: nowhere.
        reads_ahead: without any, a thread reads the next batches; only for transforms that draw from the generator that
            they are given.
    """

    def __init__(
        self,
        *,
        train: Any,
        validation: Any | None = None,
        test: Any,
        gallery: Any | None = None,
        plain_train: Any | None = None,
        labels: np.ndarray,
        sampler: Callable[..., Any],
        seed: int = 0,
        eval_batch_size: int = 256,
        workers: int = 0,
        reads_ahead: bool = False,
        own_index: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self._train, self._validation, self._test, self._gallery = train, validation, test, gallery
        self._labels, self._sampler_factory, self._seed = labels, sampler, seed
        self._eval_batch_size = eval_batch_size
        self.own_index = own_index
        self._workers, self._reads_ahead = workers, reads_ahead
        self._plain_train, self._seen_epoch = plain_train, -1
        self._sampler: Any = None
        self._resumed: dict[str, Any] | None = None

    def evaluated(self, stage: str) -> list[Any]:
        """The data sets of a stage, validation or test: of the queries, and of the gallery if there is one."""
        sets = [self._test, self._gallery] if stage == "test" else [self._validation]
        return [each for each in sets if each is not None]

    @property
    def parts(self) -> dict[str, Any]:
        """The data sets by name: training, validation, test, gallery; those that there are, each once."""
        parts = {"training": self._train, "test": self._test, "gallery": self._gallery, "validation": self._validation}
        return {name: part for name, part in parts.items() if part is not None}

    def read_once(self, dataset: Any) -> DataLoader:
        """A loader of a data set in order, outside of a run, which does not notice it."""
        return DataLoader(
            dataset,
            batch_size=self._eval_batch_size,
            collate_fn=stack,
            num_workers=self._workers,
            worker_init_fn=in_data_worker,
            generator=torch.Generator(),
        )

    def read_features(self, parts: Mapping[str, Any]) -> None:
        """Read data sets of features in the place of those of the same images.

        Args:
            parts: as `parts` has them.
        """
        self._train, self._test, self._plain_train = parts["training"], parts["test"], parts["training"]
        self._validation, self._gallery = parts.get("validation"), parts.get("gallery")
        self._workers, self._reads_ahead = 0, False

    def start_epoch(self, epoch: int) -> None:
        """Have the sampler draw this epoch."""
        self._look_at_training_set(epoch)
        self._sampler.set_epoch(epoch)

    def _look_at_training_set(self, epoch: int) -> None:
        """Show embeddings of all training images to sampler and loss, where they have a `see_training_set`.

        Once before each epoch: where a run goes on inside of one, the weights are no longer those of its beginning.
        """
        assert self.trainer is not None
        learner: Any = self.trainer.lightning_module
        seeing = [part for part in (self._sampler, *learner.loss.modules()) if hasattr(part, "see_training_set")]
        if not seeing or epoch == self._seen_epoch:
            return
        assert self._plain_train is not None
        embeddings, labels = learner.embed_all(self._in_order(self._plain_train))
        for part in seeing:
            part.see_training_set(embeddings, labels)
        self._seen_epoch = epoch

    def train_dataloader(self) -> DataLoader:
        """Batches of (images uint8 [b, 3, H, W], labels [b], indices [b]).

        Raises:
            ValueError: a run goes on whose training images were others.
        """
        assert self.trainer is not None
        self._sampler = self._sampler_factory(
            labels=self._labels, seed=self._seed, rank=self.trainer.global_rank, world_size=self.trainer.world_size
        )
        if self._resumed is not None:
            state = dict(self._resumed)
            if state.pop("images", self._fingerprint()) != self._fingerprint():
                raise ValueError(
                    "data: the training images are not those that this run began with (images or classes were added, "
                    "taken away or found broken), so it cannot go on with the same batches: begin a new run"
                )
            self._seen_epoch = state.pop("seen_epoch", -1)
            self._sampler.load_state_dict(state)
            self._resumed = None
        # Lightning makes the first iterator before it says that the epoch starts, and workers read from it at once.
        self._look_at_training_set(self._sampler.epoch)
        batches = _SeededBatches(self._sampler, self._seed)
        return self._loader(self._train, batch_sampler=batches, persistent_workers=self._workers > 0)

    def val_dataloader(self) -> list[DataLoader]:
        """The validation images; no loader when nothing is validated."""
        return [] if self._validation is None else [self._in_order(self._validation)]

    def test_dataloader(self) -> list[DataLoader]:
        """The test queries, and the gallery if the source has one."""
        return [self._in_order(part) for part in (self._test, self._gallery) if part is not None]

    def predict_dataloader(self) -> list[DataLoader]:
        """Those of the test."""
        return self.test_dataloader()

    def _fingerprint(self) -> str:
        """Of what the sampler draws from."""
        return hashlib.sha256(np.ascontiguousarray(self._labels, dtype="<i8").tobytes()).hexdigest()[:12]

    def _loader(self, dataset: Any, **given: Any) -> DataLoader:
        assert self.trainer is not None
        kind = ReadingAhead if self._reads_ahead and not self._workers else DataLoader
        return kind(
            dataset,
            collate_fn=stack,
            num_workers=self._workers,
            worker_init_fn=in_data_worker,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            **given,
        )

    def _in_order(self, dataset: Any) -> DataLoader:
        assert self.trainer is not None
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        if ranks > 1:
            # Every rank its share, without the padding of DistributedSampler: nothing is seen twice. Only a rank that
            # would have none takes another's first, which counts once: one that evaluates nothing is waited for.
            dataset = Subset(dataset, range(rank % len(dataset), len(dataset), ranks))
        return self._loader(dataset, batch_size=self._eval_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state, by the batches trained on: workers have asked it for more than that."""
        if self._sampler is None:
            return {}
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        epoch = self.trainer.current_epoch
        if done >= len(self._sampler):
            epoch, done = epoch + 1, 0
        seen = {"epoch": epoch, "position": done, "images": self._fingerprint(), "seen_epoch": self._seen_epoch}
        return {**self._sampler.state_dict(), **seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have the next training loader continue where the checkpoint was written."""
        self._resumed = state_dict or None
