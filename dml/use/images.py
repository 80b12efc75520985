"""What a user names on the command line -> images: files, folders, lists of paths, standard input."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dml.data.decode import Box
from dml.data.own_folders import kind_of_own
from dml.data.tree import readable, said
from dml.printable import printable


class Images(NamedTuple):
    """Images to embed.

    Attributes:
        entries: N images, each with the box that it is cut to, or None.
        columns: what is known of them: labels, parts, groups, [N] words each.
        max_bad: how many that cannot be decoded may be left out, as the data itself says; None: it says nothing.
    """

    entries: Sequence[tuple[Path, Box | None]]
    columns: Mapping[str, np.ndarray] = {}
    max_bad: int | None = None

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Images":
        """Whole images of which nothing else is known."""
        return cls([(path, None) for path in paths])

    @property
    def known(self) -> dict[str, np.ndarray]:
        """The columns of a file of embeddings: `columns`, and boxes [N, 4] if an image is cut to one (NaN: to none)."""
        boxes = [box for _, box in self.entries]
        if not any(boxes):
            return dict(self.columns)
        return {**self.columns, "boxes": np.array([box or (np.nan,) * 4 for box in boxes])}


def find_images(given: Sequence[str]) -> list[Path]:
    """All images that are named, in the order of the names, each once.

    Args:
        given: files; folders, of which all images at any depth are taken, sorted; lists (.txt, a path a line, below
            the list's folder unless absolute); - for standard input, a path a line.

    Raises:
        ValueError: one is not there, or holds no image; names it.
    """
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name).expanduser()
        some: Iterable[Path]
        if name == "-":
            some = _below(Path(), (line.rstrip("\r\n") for line in sys.stdin))
        elif path.is_dir():
            some = _in_folder(path)
        elif not path.is_file():
            raise ValueError(f"{path} does not exist")
        elif path.suffix.lower() == ".txt":
            some = _below(path.parent, path.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
        else:
            some = [path]
        before = len(found)
        found |= dict.fromkeys(some)
        if len(found) == before and name != "-" and not path.is_file():
            raise ValueError(f"{path} names no image that was not named before")
    if not found:
        raise ValueError("no image is named")
    return list(found)


def _below(root: Path, names: Iterable[str]) -> Iterator[Path]:
    return (root / Path(name).expanduser() for name in names if name)


def _in_folder(folder: Path) -> list[Path]:
    """Links are followed, and what is no image is passed over and told, as are folders that dml writes.

    Hidden files and folders are no images.
    """
    ends, passed_over, seen, images = readable(), Counter[str](), set[str](), []
    for here, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        if here != os.fspath(folder) and (kind := kind_of_own(Path(here), {*folders, *files})):
            passed_over[kind] += 1
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            end = os.path.splitext(name)[1].lower()
            if end in ends and not name.startswith("."):
                images.append(Path(here, name))
            else:
                passed_over[end or "no extension"] += 1
    if not images:
        raise ValueError(f"{folder} holds no image ({', '.join(sorted(ends))}){said(passed_over, ', but ')}")
    if passed_over:
        print(printable(f"{folder}: passed over {said(passed_over)}"), file=sys.stderr)
    return sorted(images)
