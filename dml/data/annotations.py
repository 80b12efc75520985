"""What the benchmarks' sources share: rows of official annotation files, listed images, class split and counts."""

import codecs
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from dml.data.dataset import Records, Source
from dml.words import counted

Count = Annotated[int, Ge(1)]


def find_root(root: str, *folders: str) -> Path:
    """ROOT/folder, as the official archive unpacks (or a copy is called), or ROOT itself, where that is the folder."""
    path = Path(root).expanduser()
    return next((path / folder for folder in folders if (path / folder).is_dir()), path)


def listed(path: str) -> str:
    """A path of an annotation file, as this system writes it: lists that were made on Windows have backslashes."""
    return path.replace("\\", "/")


def read_lines(path: Path, get: str) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte-order mark, ended as on any system.

    Raises:
        ValueError: the file is missing or in another encoding; names it.
    """
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"data.root: {path} is in UTF-16: save it as UTF-8, which the official file is. {get}")
        return content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "not text in UTF-8")
        raise ValueError(f"data.root: cannot read {path} ({why}). {get}") from error


def read_rows(path: Path, types: Sequence[Callable[[str], Any]], get: str, *, skip: int = 0) -> list[tuple[Any, ...]]:
    """Rows of a text file whose columns are separated by spaces.

    Args:
        path: the file.
        types: what to make of each column, such as int.
        get: where to get the data set, for errors.
        skip: lines of header.

    Raises:
        ValueError: the file cannot be read, or a line does not have these columns; names both.
    """
    rows = []
    for number, line in enumerate(read_lines(path, get)[skip:], start=skip + 1):
        values = line.split()
        if not values:
            continue
        try:
            rows.append(tuple(convert(value) for convert, value in zip(types, values, strict=True)))
        except ValueError as error:
            expected = " ".join("str" if convert is listed else convert.__name__ for convert in types)
            raise ValueError(
                f"data.root: line {number} of {path} is '{line.strip()[:80]}', expected {expected}. {get}"
            ) from error
    return rows


def check_images(images: Sequence[Path], listed_in: str, get: str) -> None:
    """Every image is listed once and is a file; images that no annotation lists are passed over.

    Each folder is listed once, as asking for 120,000 files one by one takes long.

    Raises:
        ValueError: one is missing or listed twice; names the first and the annotation file that lists it.
    """
    if repeated := [image for image, times in Counter(images).items() if times > 1]:
        raise ValueError(
            f"data.root: {listed_in} lists {counted(len(repeated), 'image')} more than once (the first: "
            f"{repeated[0]}). {get}"
        )
    names: dict[Path, set[str]] = {}
    missing = []
    for image in images:
        folder = image.parent
        if folder not in names:
            names[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if image.name not in names[folder]:
            missing.append(image)
    if missing:
        raise ValueError(
            f"data.root: {listed_in} and the image folder disagree: {len(missing)} of "
            f"{counted(len(images), 'listed image')} {'is' if len(missing) == 1 else 'are'} not there "
            f"(the first: {missing[0]}). {get}"
        )


def split_classes(name: str, records: Records, first: int) -> Source:
    """The split of the field: the first classes, labels 0 .. first - 1, train and the others test."""
    train = records.subset(np.flatnonzero(records.labels < first))
    return Source(name, train, records.subset(np.flatnonzero(records.labels >= first)))


def check_counts(source: Source, root: str, get: str, **expected: int | None) -> Source:
    """The source, if it has as many images and classes as expected.

    Args:
        source: as read.
        root: where from, for errors.
        get: where to get the whole data set, for errors.
        expected: train_images, train_classes, test_images, test_classes, gallery_images, gallery_classes; None is
            not checked.

    Raises:
        ValueError: a count differs; names the config keys, what was found and what was expected.
    """
    parts = {"train": source.train, "test": source.test, "gallery": source.gallery}
    found = {}
    for part, records in parts.items():
        if records is not None:
            found[f"{part}_images"], found[f"{part}_classes"] = len(records), len(np.unique(records.labels))
    wrong = [
        f"data.{key}={number} (found {found[key]})"
        for key, number in expected.items()
        if number is not None and found[key] != number
    ]
    if wrong:
        raise ValueError(f"data.root={root} is not the {source.name} that is expected: {', '.join(wrong)}. {get}")
    return source
