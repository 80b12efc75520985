"""Stanford Online Products (Song, Xiang, Jegelka, Savarese 2016), with its official class split."""

from pathlib import Path

import numpy as np

from dml.data.annotations import Count, check_counts, check_images, find_root, listed, read_rows
from dml.data.dataset import Records, Source
from dml.words import counted

GET = (
    "Get Stanford_Online_Products.zip (2.9 GB) from https://cvgl.stanford.edu/projects/lifted_struct/ and unpack it "
    "into data.root"
)


def load(*, root: str, train_classes: Count | None = 11318, test_classes: Count | None = 11316,
         train_images: Count | None = 59551, test_images: Count | None = 60502) -> Source:  # fmt: skip
    """Read Ebay_train.txt and Ebay_test.txt: image_id class_id super_class_id path.

    Args:
        root: the unpacked folder Stanford_Online_Products, or the folder that holds it. Copies that keep the images in
            images/ and the lists in Info_Files/, as online_products of Revisiting_DML does, are read as well.
        train_classes, test_classes, train_images, test_images: expected counts; null does not check one.

    Raises:
        ValueError: a file or an image is missing, a class or an image is on both sides, or a count is another.
    """
    folder = find_root(root, "Stanford_Online_Products", "online_products")
    source = Source("sop", _read(folder, "Ebay_train.txt"), _read(folder, "Ebay_test.txt"))
    if common := sorted(set(source.train.images) & set(source.test.images)):
        raise ValueError(
            f"data.root: Ebay_train.txt and Ebay_test.txt both list {counted(len(common), 'image')} "
            f"(the first: {common[0]}). {GET}"
        )
    return check_counts(
        source, root, GET,
        train_classes=train_classes, test_classes=test_classes, train_images=train_images, test_images=test_images,
    )  # fmt: skip


def _read(folder: Path, file: str) -> Records:
    apart = (folder / "Info_Files" / file).is_file() and not (folder / file).is_file()
    rows = read_rows(folder / "Info_Files" / file if apart else folder / file, (int, int, int, listed), GET, skip=1)
    images = [(folder / "images" if apart else folder) / path for *_, path in rows]
    check_images(images, file, GET)
    classes, labels = np.unique(np.array([row[1] for row in rows], dtype=np.int64), return_inverse=True)
    return Records(images, labels.astype(np.int64), tuple(map(str, classes.tolist())))
