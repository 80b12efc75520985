"""A list of images with labels, parts, boxes and groups -> the source that they are; images that lie in shards."""

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dml.data.dataset import Records, Source
from dml.data.layout import by_name
from dml.data.own_folders import make_tagged
from dml.locks import lock
from dml.words import counted

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "query": ("query",),
    "gallery": ("gallery",),
}
_SPLIT = {word: split for split, words in _WORDS.items() for word in words}
NO_LABEL = "unlabelled"  # the class of images of which none is known
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no", "none")


class Row(NamedTuple):
    """An image: what a table says of it, None where it says nothing."""

    image: Path
    label: Any
    split: Any = None
    query: Any = None
    gallery: Any = None
    box: Any = None
    group: Any = None


def source_of(name: str, rows: Sequence[Row], key: str, train_fraction: float | None) -> Source:
    """The source of a list of images.

    Args:
        name: of it.
        rows: an image each.
        key: config key with its value, for errors.
        train_fraction: share of the classes that train, where no row is of a test part; None: all rows test then.

    Raises:
        ValueError: an image is missing, a value is none that can be, or the parts share classes in part.
    """
    for number, row in enumerate(rows, 1):
        if row.label is None or str(row.label) == "":
            raise ValueError(f"{key}: image {number} ({row.image}) has no label")
    if missing := [row.image for row in rows if not row.image.is_file()]:
        raise ValueError(
            f"{key}: {counted(len(missing), 'image')} of {len(rows)} {'is' if len(missing) == 1 else 'are'} not there; "
            f"the first: {missing[0]}. data.root=DIR says where paths begin"
        )
    parts: dict[str, list[Row]] = {split: [] for split in _WORDS}
    passed_over: Counter[str] = Counter()
    for row in rows:
        places = _places(row, key)
        if not places:
            passed_over["test images that are neither query nor gallery"] += 1
        for place in places:
            parts[place].append(row)
    if parts["test"] and (parts["query"] or parts["gallery"]):
        raise ValueError(f"{key} has rows called test beside query or gallery: which of these are the queries?")
    if bool(parts["query"]) != bool(parts["gallery"]):
        raise ValueError(f"{key} has {'queries and no gallery' if parts['query'] else 'a gallery and no query'}")
    tested = parts["query"] or parts["test"]
    for some in (parts["train"], parts["val"], [*tested, *parts["gallery"]]):
        without = [row for row in some if row.group is None]
        if 0 < len(without) < len(some):
            raise ValueError(
                f"{key}: {counted(len(without), 'image')} of {len(some)} have no group (the first: "
                f"{without[0].image}): of the images that are searched together all or none may"
            )
    gallery = _records(parts["gallery"], key, [*tested, *parts["gallery"]]) if parts["gallery"] else None
    if not tested:
        if parts["val"]:
            raise ValueError(f"{key} has rows called val and none called test: call them test, or leave out the column")
        if train_fraction is None:
            nothing = Records([], np.zeros(0, dtype=np.int64), ())
            return Source(name, nothing, _records(parts["train"], key), passed_over=passed_over)
        return _by_classes(name, _records(parts["train"], key), key, train_fraction, passed_over)
    train, test = _records(parts["train"], key), _records(tested, key, [*tested, *parts["gallery"]])
    common = set(train.class_names) & set(test.class_names)
    if common and len(common) < test.num_classes:
        raise ValueError(
            f"{key}: {len(common)} test classes are training classes too (the first: {min(common)}), and "
            f"{test.num_classes - len(common)} are not: numbers would be neither of unseen nor of known classes"
        )
    leak = f"all {len(common)} test classes are training classes" if common else ""
    validation = _records(parts["val"], key) if parts["val"] else None
    return Source(
        name, train, test, gallery, not common, leak, passed_over=passed_over, validation=validation
    )  # fmt: skip


def _by_classes(name: str, records: Records, key: str, train_fraction: float, passed_over: Counter[str]) -> Source:
    first = round(train_fraction * records.num_classes)
    if not 0 < first < records.num_classes:
        raise ValueError(
            f"data.train_fraction={train_fraction} of the {counted(records.num_classes, 'class')} of {key} leaves "
            f"{first} to train and {records.num_classes - first} to test: each side needs one"
        )
    train, test = (records.subset(np.flatnonzero(side)) for side in (records.labels < first, records.labels >= first))
    note = f"{key} has no test rows: the first {first} of {counted(records.num_classes, 'class')} train, the rest test"
    return Source(name, train, test, passed_over=passed_over, notes=(note,))


def _places(row: Row, key: str) -> list[str]:
    word = "train" if row.split is None else str(row.split).strip().lower()
    if word not in _SPLIT:
        known = ", ".join(_WORDS)
        raise ValueError(f"{key}: the split of {row.image} is {row.split}, which is none of {known}")
    if _SPLIT[word] != "test" or (row.query is None and row.gallery is None):
        return [_SPLIT[word]]
    return [kind for kind in ("query", "gallery") if _is_true(getattr(row, kind), kind, row, key)]


def _is_true(value: Any, kind: str, row: Row, key: str) -> bool:
    word = "" if value is None else str(value).strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError(f"{key}: {kind} of {row.image} is {value}, which is none of 1, true, yes, 0, false, no")
    return word in _TRUE


def _records(rows: Sequence[Row], key: str, named: Sequence[Row] | None = None) -> Records:
    """The records of some rows, sorted by class; with the class names of `named`."""
    names = sorted({str(row.label) for row in (rows if named is None else named)}, key=lambda name: by_name((name,)))
    number = {name: label for label, name in enumerate(names)}
    rows = sorted(rows, key=lambda row: number[str(row.label)])  # stable
    boxed = [row for row in rows if row.box is not None]
    if boxed and len(boxed) < len(rows):
        raise ValueError(
            f"{key}: {counted(len(rows) - len(boxed), 'image')} of {len(rows)} have no box; all or none may"
        )
    grouped = any(row.group is not None for row in rows)
    return Records(
        images=[row.image for row in rows],
        labels=np.array([number[str(row.label)] for row in rows], dtype=np.int64),
        class_names=tuple(names),
        boxes=np.array([_box(row, key) for row in rows]) if boxed else None,
        groups=np.array([f"{row.group}" for row in rows]) if grouped else None,
    )


def _box(row: Row, key: str) -> list[float]:
    try:
        values = re.split(r"[\s,;]+", row.box.strip(" []()")) if isinstance(row.box, str) else list(row.box)
        left, top, right, bottom = map(float, values)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: the box of {row.image} is {row.box}, not left, top, right, bottom") from None
    return [left, top, right, bottom]


def unpacked(images: Iterable[bytes | None], folder: Path, key: str) -> list[Path]:
    """Write the files of images into a folder, unless it is there, and return them in their order.

    The folder is there whole or not at all; other processes wait. The paths are absolute: who keeps them may be read
    from another folder than this.

    Raises:
        ValueError: an image is missing.
    """
    folder = folder.absolute()
    make_tagged(folder.parent)
    with folder.with_suffix(".lock").open("w") as file:
        lock(file)
        if not folder.is_dir():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for number, content in enumerate(images):
                if not content:
                    raise ValueError(f"{key}: image {number + 1} is empty")
                place = part / f"{number // 1000:04d}"
                place.mkdir(exist_ok=True)
                (place / f"{number % 1000:03d}").write_bytes(content)
            part.rename(folder)
    return sorted(path for place in folder.iterdir() for path in place.iterdir())
