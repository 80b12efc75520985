"""Records of images and labels, the sources they form, and the torch data set over them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dml.data.decode import Box, Decode
from dml.data.splits import (
    TWO_CLASSES,
    WHOLE,
    can_train,
    check_folds,
    enough,
    part_of_each_class,
    shuffled,
    useful_next,
)
from dml.words import counted


@dataclass(frozen=True)
class Records:
    """Labelled images: N paths, or N uint8 arrays [H, W] or [H, W, 3].

    Attributes:
        images: N paths or arrays.
        labels: [N] int64, indices into class_names.
        class_names: one name a class.
        boxes: [N, 4] bounding boxes (left, top, right, bottom) in pixels, if the source has them.
        left_out: how many further images were left out, as they cannot be decoded.
        wholes: one name a class, of what it is a part of and no split may cut; None: each class stands alone.
        groups: [N] of what an image is one (a camera, a session), if it is to be searched among those of others only.
    """

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    boxes: np.ndarray | None = None
    left_out: int = 0
    wholes: tuple[str, ...] | None = None
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.labels), (len(self.images), len(self.labels))
        assert self.boxes is None or self.boxes.shape == (len(self.labels), 4)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes that have a name; labels run from 0 to one less."""
        return len(self.class_names)

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of images and of classes that have one, images of the smallest and of the largest class."""
        sizes = np.unique(self.labels, return_counts=True)[1]
        smallest, largest = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
        return {
            "images": len(self), "classes": len(sizes), "smallest_class": smallest, "largest_class": largest
        }  # fmt: skip

    def subset(self, indices: np.ndarray) -> "Records":
        """The images at `indices` [n]; classes that no image is left of are dropped and labels renumbered."""
        kept, labels = np.unique(self.labels[indices], return_inverse=True)
        images = self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices]
        return Records(
            images=images,
            labels=labels.astype(np.int64),
            class_names=tuple(self.class_names[c] for c in kept),
            boxes=None if self.boxes is None else self.boxes[indices],
            wholes=None if self.wholes is None else tuple(self.wholes[c] for c in kept),
            groups=None if self.groups is None else self.groups[indices],
        )


@dataclass(frozen=True)
class Source:
    """What every file of dml/data builds: training records, and test records that training never sees.

    Attributes:
        name: for tables.
        train: the training records.
        test: the test queries.
        gallery: what the queries are searched in; None: in the other queries.
        class_disjoint: train and test have no class in common (the retrieval protocol of the field); a validation
            part of the training records is then class-disjoint too.
        leak: why no number of the test records is one of unseen classes, though one could take it for that; empty: no
            reason is known.
        passed_over: what was not read: an extension, or another word for the kind -> how many files (or classes).
        notes: what else a user has to know of how the source was read and split, a sentence each.
        validation: the validation part that the source itself names; None: it is taken from the training records.
    """

    name: str
    train: Records
    test: Records
    gallery: Records | None = None
    class_disjoint: bool = True
    leak: str = ""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    validation: Records | None = None

    def __post_init__(self) -> None:
        common = sorted(set(self.train.class_names) & set(self.test.class_names))
        if self.class_disjoint and common:
            raise ValueError(
                f"data: {len(common)} test classes of {self.name} are training classes too "
                f"(the first: {common[0]}): no number measured on them would be one of unseen classes"
            )

    @property
    def own_index(self) -> np.ndarray | None:
        """Where in the gallery the image of each test query is [Q], -1 if it is not there; None without a gallery.

        The same image is the same file, links followed, cut to the same box if there are boxes. Images in memory are
        taken for different ones.
        """
        if self.gallery is None:
            return None
        if isinstance(self.test.images, np.ndarray) or isinstance(self.gallery.images, np.ndarray):
            return np.full(len(self.test), -1)

        def keys(records: Records) -> list[tuple[str, ...]]:
            boxes = [()] * len(records) if records.boxes is None else records.boxes.tolist()
            return [(os.path.realpath(image), *map(str, box)) for image, box in zip(records.images, boxes, strict=True)]

        place = {key: index for index, key in enumerate(keys(self.gallery))}
        return np.array([place.get(key, -1) for key in keys(self.test)])

    def parts(self, validation: Records | None = None) -> dict[str, Records]:
        """The records by name: train, validation (if one was held out), test, and gallery if there is one."""
        parts = {"train": self.train, "validation": validation, "test": self.test, "gallery": self.gallery}
        return {name: records for name, records in parts.items() if records is not None}

    def hold_out(self, fraction: float, fold: int | None = None, folds: int = 5) -> tuple["Source", Records]:
        """Split a validation part off the training records; the split depends on the arguments alone.

        Class-disjoint sources give up whole classes, others a stratified part of the images. Whole classes are two with
        two images each at least, as in a part of one class every neighbour is a positive: more than `fraction` of them
        if need be, which `notes` then says. What the records call wholes is not cut, where enough is left to train.

        Args:
            fraction: of the training classes (or images) that becomes the validation part, in (0, 1).
            fold: take part `fold` of `folds` equal ones instead, 0 .. folds - 1.
            folds: their number.

        Returns:
            The source with fewer training records, and the validation records.

        Raises:
            ValueError: one of the sides (with folds: of any fold) would have too few classes or images; names the
                config key.
        """
        if self.validation is not None:
            if fold is not None:
                raise ValueError(f"data.fold={fold} is not possible: the data names its own validation images")
            return replace(self, validation=None), self.validation
        if fold is None:
            if not 0 < fraction < 1:
                raise ValueError(f"data.val_fraction={fraction} is not possible: it must lie between 0 and 1")
            start, stop = 0.0, fraction
        else:
            if not 0 <= fold < folds or folds < 2:
                raise ValueError(f"data.fold={fold} is not possible: it must be 0 to data.folds - 1 = {folds - 1}")
            start, stop = fold / folds, (fold + 1) / folds
        labels, notes = self.train.labels, self.notes
        rng = np.random.default_rng(0)

        if self.class_disjoint:
            useful = np.bincount(labels, minlength=self.train.num_classes) >= 2
            classes, ends = shuffled(self.train.wholes or self.train.class_names, rng)
            first, last = ends[round(start * len(classes))], ends[round(stop * len(classes))]
            if fold is not None:
                check_folds(useful[classes], folds, ends)
            elif last:
                wanted = round(stop * len(classes))
                together = len(set(self.train.wholes or ())) > 1
                if not together:
                    classes = useful_next(classes, wanted, useful)
                last = ends[enough(useful[classes], wanted)]
                if together and not can_train(useful[classes][last:]):
                    classes = useful_next(rng.permutation(len(classes)), wanted, useful)
                    last = enough(useful[classes], wanted)
                    notes += (
                        "the validation part holds some classes of a folder whose others train: there are too few",
                    )
                if last > wanted:
                    notes += (
                        f"the validation part has {last} of {len(classes)} training classes, not {wanted} "
                        f"(data.val_fraction={fraction}): {WHOLE if together else TWO_CLASSES}",
                    )
            if fold is None and last and not can_train(useful[classes][last:]):
                raise ValueError(
                    f"data.val_fraction={fraction} of {len(classes)} training classes is not possible: the validation "
                    f"part takes {last} ({TWO_CLASSES}), and training needs two, of which one has two images. Give "
                    "more training classes, or protocol=paper, which validates nothing"
                )
            held_out = np.isin(labels, classes[first:last])
        else:
            held_out = part_of_each_class(labels, start, stop, rng)
        if held_out.all() or not held_out.any():
            raise ValueError(
                f"data.val_fraction={fraction} (fold {fold} of {folds}) leaves {len(labels) - held_out.sum()} "
                f"images to train and {held_out.sum()} to validate"
            )
        validation = self.train.subset(np.flatnonzero(held_out))
        return replace(self, train=self.train.subset(np.flatnonzero(~held_out)), notes=notes), validation


def stratified_split(records: Records, fraction: float, seed: int) -> tuple[Records, Records]:
    """Split off `fraction` of the images of every class, at random: (the rest, the part)."""
    part = part_of_each_class(records.labels, 0, fraction, np.random.default_rng(seed))
    return records.subset(np.flatnonzero(~part)), records.subset(np.flatnonzero(part))


BLANK, DARK = 2, 16


def is_blank(image: Tensor) -> bool:
    """Whether an image [3, h, w] is of one colour, or none of its values reaches DARK of 255."""
    return bool((image < DARK).all() or (image == image[:, :1, :1]).all())


class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """Records -> (image uint8 [3, H, W], label, index).

    An item is asked for by its index, or by (index, seed): then the random choices of the transform depend on
    that seed alone, whichever worker, thread or process makes them.

    Args:
        records: the images.
        transform: uint8 tensor [3, h, w] -> uint8 tensor [3, H, W] (or [crops, 3, H, W]); of an item with a seed it is
            given a torch.Generator too, from which all its random choices have to come.
        decode: image and box, or None -> uint8 tensor [3, h, w]; None: decoding alone. A cache takes its place.
        crop_to_box: cut every image to its bounding box.

    Attributes:
        looks: [N] uint8, in memory that loader processes share: 0 for an image that nobody has asked for yet, BLANK for
            one that is of one colour or nearly black, 1 for any other.

    Raises:
        ValueError: crop_to_box for records without boxes, or with a box that holds no pixel.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[..., Tensor],
        *,
        decode: Callable[[Path | np.ndarray, Box | None], Tensor] | None = None,
        crop_to_box: bool = False,
    ) -> None:
        if crop_to_box and records.boxes is None:
            raise ValueError(
                "transform.crop_to_box=true is not possible: this data set has no bounding boxes (cub200: in "
                "bounding_boxes.txt; cars196: in the .mat files)"
            )
        if crop_to_box and records.boxes is not None:
            corners = records.boxes.round()  # as Pillow's crop does
            empty = np.flatnonzero((corners[:, 2:] <= corners[:, :2]).any(axis=1))
            if len(empty):
                raise ValueError(
                    f"transform.crop_to_box=true is not possible: no pixel in {counted(len(empty), 'box')} "
                    f"(the first: {records.boxes[empty[0]].tolist()} of {records.images[empty[0]]})"
                )
        self.records = records
        self.transform = transform
        self.decode = Decode() if decode is None else decode
        self.crop_to_box = crop_to_box
        self.looks = torch.zeros(len(records), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: Any) -> tuple[Tensor, int, int]:
        """The transformed image, its label and its index."""
        index, given = item, []
        if isinstance(item, tuple):
            index, given = item[0], [torch.Generator().manual_seed(item[1])]
        image = self.decode(*self.to_decode(index))
        if not self.looks[index]:
            self.looks[index] = BLANK if is_blank(image) else 1
        return self.transform(image, *given), int(self.records.labels[index]), index

    def to_decode(self, index: int) -> tuple[Path | np.ndarray, Box | None]:
        """What an item is decoded from: its image, and its box if it is cut to one."""
        box = None
        if self.crop_to_box:
            assert self.records.boxes is not None
            left, top, right, bottom = self.records.boxes[index].tolist()
            box = left, top, right, bottom
        return self.records.images[index], box
