"""CUB-200-2011 birds (Wah, Branson, Welinder, Perona, Belongie 2011), the first 100 classes to train."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dml.data.annotations import Count, check_counts, check_images, find_root, listed, read_rows, split_classes
from dml.data.dataset import Records, Source
from dml.data.folder import read_tree
from dml.words import counted

GET = (
    "Get CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158 "
    "or run: python -m dml.data.prepare cub200 root=DIR"
)


def load(*, root: str, train_classes: Count = 100, test_classes: Count | None = 100, train_images: Count | None = 5864,
         test_images: Count | None = 5924) -> Source:  # fmt: skip
    """Read images.txt, image_class_labels.txt and bounding_boxes.txt, with the class split of Song et al. (2016).

    Copies that keep images/ alone (Revisiting_DML's) are read by the numbers in the names of their class folders.

    Args:
        root: the unpacked folder CUB_200_2011 (or cub200), or the folder that holds it.
        train_classes: how many classes train, by their official number; the others test.
        test_classes, train_images, test_images: expected counts; null does not check one.

    Returns:
        Source with boxes (left, top, right, bottom), of the file's x, y, width and height; without boxes where there is
        no such file.

    Raises:
        ValueError: a file or an image is missing, the files disagree, or a count is another.
    """
    folder = find_root(root, "CUB_200_2011", "cub200")
    listed_there = any((folder / name).exists() for name in ("images.txt", "image_class_labels.txt"))
    alone = (folder / "images").is_dir() and not listed_there
    records = _read_class_folders(folder / "images") if alone else _read_lists(folder)
    return check_counts(
        split_classes("cub200", records, train_classes), root, GET,
        train_classes=train_classes, test_classes=test_classes, train_images=train_images, test_images=test_images,
    )  # fmt: skip


def _read_lists(folder: Path) -> Records:
    paths = _by_id(folder / "images.txt", listed)
    classes = _by_id(folder / "image_class_labels.txt", int)
    boxes = None
    if (folder / "bounding_boxes.txt").exists():  # only transform.crop_to_box asks for it
        boxes = _by_id(folder / "bounding_boxes.txt", float, float, float, float)
    for file, other in (("image_class_labels.txt", classes), ("bounding_boxes.txt", boxes)):
        if other is not None and (different := sorted(paths.keys() ^ other.keys())):
            raise ValueError(
                f"data.root: images.txt and {file} in {folder} disagree on {counted(len(different), 'image')} "
                f"(the first: image {different[0]} is only in {'images.txt' if different[0] in paths else file}). {GET}"
            )
    names: dict[int, str] = {}
    for image, (path,) in paths.items():
        name = Path(path).parent.as_posix()
        if names.setdefault(classes[image][0], name) != name:
            raise ValueError(
                f"data.root: image_class_labels.txt and the image folder disagree: {path} has the class "
                f"{classes[image][0]} of {names[classes[image][0]]}. {GET}"
            )
    images = [folder / "images" / path for (path,) in paths.values()]
    check_images(images, "images.txt", GET)
    corners = None
    if boxes is not None:
        corners = np.array([boxes[image] for image in paths]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
    numbers, labels = np.unique([classes[image][0] for image in paths], return_inverse=True)
    return Records(images, labels.astype(np.int64), tuple(names[number] for number in numbers), corners)


def _read_class_folders(folder: Path) -> Records:
    """Folders such as 001.Black_footed_Albatross, in the order of the official numbers in their names."""
    try:
        tree = read_tree(folder, "data.root")
    except ValueError as error:
        raise ValueError(f"{error}. {GET}") from error
    numbers = [name.partition(".")[0] for name in tree.class_names]
    if unnumbered := [name for name, number in zip(tree.class_names, numbers, strict=True) if not number.isdecimal()]:
        raise ValueError(
            f"data.root: {folder.parent} has no images.txt, and the class folder {unnumbered[0]} in images/ does not "
            f"begin with its official number, such as 001.Black_footed_Albatross. {GET}"
        )
    order = np.argsort([int(number) for number in numbers], kind="stable")
    return Records(tree.images, np.argsort(order)[tree.labels], tuple(tree.class_names[c] for c in order))


def _by_id(path: Path, *types: Callable[[str], Any]) -> dict[int, tuple[Any, ...]]:
    """The rows of a file by their first column, the number of the image."""
    rows = read_rows(path, (int, *types), GET)
    if repeated := [number for number, times in Counter(row[0] for row in rows).items() if times > 1]:
        raise ValueError(
            f"data.root: {path} lists {counted(len(repeated), 'image')} more than once (the first: image "
            f"{repeated[0]}). {GET}"
        )
    return {row[0]: row[1:] for row in rows}
