"""What a model was trained on, in a form that a checkpoint can carry, and whether what is tested was part of it."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dml.data.dataset import Records, Source
from dml.data.layout import identities

_WHOLE = 128 * 1024  # bytes up to which a file is read whole
_PART, _PARTS = 8 * 1024, 8  # of larger ones: the size, and this many parts from the first to the last


class TrainedOn(NamedTuple):
    """What decided the weights: the training part, and the validation part that chose them.

    Attributes:
        data: name of the source.
        train_images, train_classes: numbers of the training part.
        classes: names of the classes of both parts.
        images: [n] int64, sorted: fingerprints of the contents of the images of both parts (8 bytes each).
        order: fingerprint of the images of both parts with their labels, in the order in which they are read.
        test: fingerprint of the classes and labels of the test part beside them.
        parts: train and validation -> their numbers of images and classes, sizes of their smallest and largest class.
    """

    data: str
    train_images: int
    train_classes: int
    classes: list[str]
    images: torch.Tensor
    order: str
    test: str
    parts: dict[str, dict[str, int]]

    @classmethod
    def of(cls, source: Source, validation: Records | None) -> "TrainedOn":
        """Of a source, whose training records are without the validation part.

        Raises:
            ValueError: an image cannot be read; names it.
        """
        parts = {name: part for name, part in source.parts(validation).items() if name in ("train", "validation")}
        found, order = [fingerprints(part.images) for part in parts.values()], hashlib.sha256()
        for part, images in zip(parts.values(), found, strict=True):
            order.update(images.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
        return cls(
            source.name,
            len(source.train),
            source.train.num_classes,
            classes=sorted({name for part in parts.values() for name in part.class_names}),
            images=torch.from_numpy(np.unique(np.concatenate(found))),
            order=order.hexdigest()[:12],
            test=of_test_part(source),
            parts={name: part.sizes for name, part in parts.items()},
        )

    @classmethod
    def read(cls, found: Any) -> "TrainedOn | None":
        """From what `_asdict` gave a checkpoint; None if that is not there or something else."""
        if not isinstance(found, dict) or found.keys() != set(cls._fields):
            return None
        read = cls(**found)
        plain = isinstance(read.classes, list) and all(isinstance(name, str) for name in read.classes)
        numbers = isinstance(read.images, torch.Tensor) and read.images.dtype == torch.int64 and read.images.ndim == 1
        sizes = isinstance(read.train_images, int) and isinstance(read.train_classes, int)
        sizes = sizes and isinstance(read.parts, dict) and isinstance(read.data, str)
        return read if plain and numbers and sizes else None

    def overlap(self, source: Source) -> str:
        """What of the test part (queries and gallery) was trained on, in words; empty: nothing.

        A class was trained on if the name of its folder was (its path, where names are there twice), an image if one of
        the same content was, whatever its name and folder.

        Raises:
            ValueError: an image cannot be read; names it.
        """
        parts = [source.test] if source.gallery is None else [source.test, source.gallery]
        images = np.concatenate([fingerprints(part.images) for part in parts])
        seen = int(np.isin(images, self.images.numpy()).sum())
        sides = (self.classes, source.test.class_names)
        mine, tested = identities(*([tuple(name.split("/")) for name in side] for side in sides))
        classes = [name for name in tested if name in set(mine)]
        found = []
        if classes:
            found.append(
                f"{len(classes)} of {len(tested)} tested classes have the name of one that was trained on (the first: "
                f"{classes[0]})"
            )
        if seen:
            found.append(f"{seen} of {len(images)} tested images were trained on")
        return "; ".join(found)


def of_test_part(source: Source) -> str:
    """A fingerprint of the classes and labels that are tested on: two folders of one name are not one data set."""
    digest = hashlib.sha256()
    for records in (source.test, source.gallery):
        if records is not None:
            names = "\0".join(records.class_names).encode(errors="surrogatepass")  # of folders that are not UTF-8
            digest.update(names + records.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:12]


def fingerprints(images: Sequence[Path] | np.ndarray) -> np.ndarray:
    """[N] int64, of the contents of files or arrays: of large files their size and parts, which takes a moment.

    Raises:
        ValueError: a file cannot be read; names it.
    """
    with ThreadPoolExecutor(8, "fingerprints") as readers:
        return np.fromiter(readers.map(_fingerprint, images, chunksize=64), dtype=np.int64, count=len(images))


def _fingerprint(image: Path | np.ndarray) -> int:
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(image, np.ndarray):
        digest.update(f"{image.shape} {image.dtype}".encode() + image.tobytes())
    else:
        try:
            for part in _content(image):
                digest.update(part)
        except OSError as error:
            raise ValueError(f"the image {image} cannot be read: {error}") from error
    return int.from_bytes(digest.digest(), "little", signed=True)


def _content(image: Path) -> Iterator[bytes]:
    with open(image, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        yield str(size).encode()
        if size <= _WHOLE:
            yield file.read()
            return
        for i in range(_PARTS):
            file.seek(i * (size - _PART) // (_PARTS - 1))
            yield file.read(_PART)
