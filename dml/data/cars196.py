"""Cars196 (Krause, Stark, Deng, Fei-Fei 2013), the first 98 classes to train, in any of the layouts in circulation."""

from pathlib import Path
from typing import Any

import numpy as np

from dml.data.annotations import Count, check_counts, check_images, find_root, listed, split_classes
from dml.data.dataset import Records, Source
from dml.data.tree import read_folders

LAYOUTS = (
    "car_ims/ and cars_annos.mat, or cars_train/ and cars_test/ with devkit/cars_train_annos.mat and "
    "cars_test_annos_withlabels.mat, or 196 class folders"
)
GET = (
    f"Expected in data.root: {LAYOUTS}. The official site is gone; get a copy from Kaggle (with a login): "
    "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset (images) and "
    "https://github.com/pytorch/vision/issues/7545 (where the .mat files are)"
)


def load(*, root: str, train_classes: Count = 98, test_classes: Count | None = 98, train_images: Count | None = 8054,
         test_images: Count | None = 8131) -> Source:  # fmt: skip
    """Read whichever layout is there, with the class split of Song et al. (2016).

    Class folders are sorted by name (by number, where all names are numbers), which gives the official two halves.

    Args:
        root: the folder of one of the layouts.
        train_classes: how many classes train, by their official number; the others test.
        test_classes, train_images, test_images: expected counts; null does not check one.

    Returns:
        Source with boxes (left, top, right, bottom) as in the .mat files; without boxes for class folders, and where
        the .mat files have none.

    Raises:
        ValueError: a file or an image is missing, the files disagree, or a count is another.
    """
    folder = find_root(root, "cars196")
    if (folder / "car_ims").is_dir():
        file = folder / "cars_annos.mat"
        mat = _read_mat(file)
        records = _read_annotations([(file, mat, "relative_im_path", folder)], mat.get("class_names"))
    elif (folder / "cars_train").is_dir() or (folder / "cars_test").is_dir():
        sides = []
        for name, images in (("cars_train_annos.mat", "cars_train"), ("cars_test_annos_withlabels.mat", "cars_test")):
            file = _find(folder, name)
            sides.append((file, _read_mat(file), "fname", _image_folder(folder / images)))
        meta = _find(folder, "cars_meta.mat")
        records = _read_annotations(sides, _read_mat(meta).get("class_names") if meta.is_file() else None)
    else:
        records = _read_class_folders(folder)
    return check_counts(
        split_classes("cars196", records, train_classes), root, GET,
        train_classes=train_classes, test_classes=test_classes, train_images=train_images, test_images=test_images,
    )  # fmt: skip


def _find(folder: Path, name: str) -> Path:
    """An annotation file of the devkit: in devkit/, at the root, or as Kaggle's copy packs it."""
    places = [folder / "devkit" / name, folder / name, folder / "car_devkit" / "devkit" / name]
    return next((place for place in places if place.is_file()), places[0])


def _image_folder(folder: Path) -> Path:
    """The folder of the images; Kaggle's copy has it in one of the same name."""
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def _read_mat(path: Path) -> dict[str, Any]:
    # scipy.io takes a while to import; only this data set needs it.
    from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True)
    except Exception as error:  # a broken file can raise nearly anything
        raise ValueError(f"data.root: cannot read {path} ({type(error).__name__}). {GET}") from error


def _read_annotations(sides: list[tuple[Path, dict[str, Any], str, Path]], class_names: Any) -> Records:
    """The images of one or two .mat files: (file, what is in it, field of the image's name, folder of the images)."""
    images: list[Path] = []
    classes, boxes = [], []
    tables = [np.atleast_1d(mat.get("annotations", ())) for _, mat, _, _ in sides]
    corners = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    boxed = any(
        set(corners) & set(rows.dtype.names or ()) for rows in tables
    )  # only transform.crop_to_box asks for them
    fields = (*corners, "class") if boxed else ("class",)
    for rows, (file, _, name_field, folder) in zip(tables, sides, strict=True):
        if missing := sorted({*fields, name_field} - set(rows.dtype.names or ())):
            raise ValueError(f"data.root: the annotations in {file} have no field {', '.join(missing)}. {GET}")
        found = [folder / listed(str(name)) for name in rows[name_field]]
        check_images(found, file.name, GET)
        images += found
        columns = np.array([[int(row[field]) for field in fields] for row in rows], dtype=np.int64).reshape(
            -1, len(fields)
        )
        boxes.append(columns[:, :-1])
        classes.append(columns[:, -1])
    labels = np.concatenate(classes) - 1
    last = int(labels.max(initial=-1)) + 1
    names = tuple(map(str, range(1, last + 1) if class_names is None else np.atleast_1d(class_names)))
    if labels.min(initial=0) < 0 or last > len(names):
        raise ValueError(
            f"data.root: {sides[0][0]} has classes from {labels.min() + 1} to {last}, but there are "
            f"{len(names)} class names. {GET}"
        )
    return Records(images, labels, names, np.concatenate(boxes) if boxed else None)


def _read_class_folders(folder: Path) -> Records:
    """Class folders, those of the same name merged: some copies keep them under train/ and test/, others in images/."""
    try:
        tree = read_folders(folder, "data.root")
    except ValueError as error:
        raise ValueError(f"{error}. {GET}") from error
    found = {parts: images for parts, images in sorted(tree.folders.items()) if parts and images}
    if not found:
        raise ValueError(f"data.root={folder} holds no class folder with images. {GET}")
    names = {parts[-1] for parts in found}
    numbered = all(name.isdecimal() for name in names)
    classes = sorted(names, key=lambda name: (int(name) if numbered else 0, name))
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[parts[-1]] for parts, images in found.items() for _ in images]
    images = [image for images in found.values() for image in images]
    return Records(images, np.array(labels, dtype=np.int64), tuple(classes))
