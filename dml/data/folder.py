"""Any tree of class folders: a class is the folder that holds the images."""

from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval

from dml.data.dataset import Records, Source

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


def load(
    *,
    root: str | None = None,
    train_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
    train_root: str | None = None,
    test_root: str | None = None,
) -> Source:
    """Read a tree of images and split it by class: no test class is a training class.

    Classes are named by their path below the root and sorted by that name. Either `root` holds all of them, the
    first `train_fraction` of which train (the field's first-half/second-half split), or `train_root` and
    `test_root` hold one side each.

    Raises:
        ValueError: a folder is missing or holds no class, or the same class stands on both sides.
    """
    if (train_root is None) != (test_root is None) or (root is None) == (train_root is None):
        raise ValueError("data=folder needs data.root=DIR, or both data.train_root=DIR and data.test_root=DIR")
    if train_root is not None and test_root is not None:
        a, b = Path(train_root).expanduser().resolve(), Path(test_root).expanduser().resolve()
        if a == b or a in b.parents or b in a.parents:
            raise ValueError(f"data.train_root={train_root} and data.test_root={test_root} share images")
        train, test = read_tree(train_root, "data.train_root"), read_tree(test_root, "data.test_root")
        return Source(Path(train_root).resolve().name, train, test)
    assert root is not None
    records = read_tree(root, "data.root")
    if not 0 < train_fraction < 1:
        raise ValueError(f"data.train_fraction={train_fraction} is not possible: it must lie between 0 and 1")
    first = round(train_fraction * records.num_classes)
    if not 0 < first < records.num_classes:
        raise ValueError(
            f"data.train_fraction={train_fraction} of the {records.num_classes} classes in data.root={root} leaves "
            f"{first} to train and {records.num_classes - first} to test: each side needs one"
        )
    train = records.subset(np.flatnonzero(records.labels < first))
    test = records.subset(np.flatnonzero(records.labels >= first))
    return Source(Path(root).resolve().name, train, test)


def read_tree(root: str | Path, key: str) -> Records:
    """All images below `root`, by class folder and file name in sorted order; hidden files are passed over.

    Args:
        root: the folder.
        key: config key to name in errors.

    Raises:
        ValueError: the folder does not exist, holds no image, or has a class folder without one.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"{key}={root} is not a folder")
    classes: list[tuple[str, list[Path]]] = []
    for folder in sorted(p for p in [root, *root.rglob("*")] if p.is_dir()):
        if any(part.startswith(".") for part in folder.relative_to(root).parts):
            continue
        children = [p for p in folder.iterdir() if not p.name.startswith(".")]
        images = sorted(p for p in children if p.suffix.lower() in EXTENSIONS and p.is_file())
        if images:
            classes.append((folder.relative_to(root).as_posix(), images))
        elif not any(p.is_dir() for p in children):
            raise ValueError(f"{key}: the class folder {folder} holds no image: remove it or fill it")
    if not classes:
        raise ValueError(f"{key}={root} holds no image ({', '.join(sorted(EXTENSIONS))})")
    classes.sort(key=lambda c: c[0])
    return Records(
        images=[image for _, images in classes for image in images],
        labels=np.repeat(np.arange(len(classes)), [len(images) for _, images in classes]),
        class_names=tuple(name for name, _ in classes),
    )
