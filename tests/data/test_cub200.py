"""CUB-200-2011 in miniature: 4 classes of 3 images, in the official text formats."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dml.data.cub200 import load
from dml.data.dataset import ImageDataset
from dml.data.transforms import Transforms

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani")
COUNTS = {"train_classes": 2, "test_classes": 2, "train_images": 6, "test_images": 6}


def write_cub(folder: Path) -> None:
    """The folder CUB_200_2011, in `folder`."""
    images, labels, boxes = [], [], []
    for number, (c, i) in enumerate(((c, i) for c in range(4) for i in range(3)), start=1):
        path = f"{CLASSES[c]}/{CLASSES[c][4:]}_{i:04d}_{number}.jpg"
        file = folder / "CUB_200_2011" / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (20 * number, 0, 0)).save(file)
        images.append(f"{number} {path}\n")
        labels.append(f"{number} {c + 1}\n")
        boxes.append(f"{number} {number / 4:.1f} 2.0 6.0 5.0\n")
    for name, lines in (
        ("images.txt", images), ("image_class_labels.txt", labels), ("bounding_boxes.txt", boxes)
    ):  # fmt: skip
        (folder / "CUB_200_2011" / name).write_text("".join(lines))


@pytest.fixture
def root(tmp_path):
    write_cub(tmp_path)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("inner", ["", "CUB_200_2011"])
def test_first_classes_train(root, inner):
    source = load(root=str(root / inner), **COUNTS)
    assert source.train.class_names == CLASSES[:2]
    assert source.test.class_names == CLASSES[2:]
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.gallery is None and source.class_disjoint
    for records in (source.train, source.test):
        for image, label in zip(records.images, records.labels, strict=True):
            assert image.is_file() and image.parent.name == records.class_names[label]


def test_boxes_are_corners(root):
    source = load(root=str(root), **COUNTS)
    assert source.test.boxes is not None
    np.testing.assert_allclose(source.test.boxes[0], [1.8, 2, 7.8, 7])  # image 7: 7 / 4 at one digit
    transforms = Transforms(size=4, resize=4, resize_side="both", crop_to_box=True)
    image, label, index = ImageDataset(source.test, transforms.test, decode=transforms.decode, crop_to_box=True)[3]
    assert image.shape == (3, 4, 4) and (label, index) == (1, 3)


def test_order_of_the_files_does_not_matter(root):
    expected = load(root=str(root), **COUNTS)
    for name in ("image_class_labels.txt", "bounding_boxes.txt"):
        file = root / "CUB_200_2011" / name
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    source = load(root=str(root), **COUNTS)
    np.testing.assert_array_equal(source.train.labels, expected.train.labels)
    np.testing.assert_array_equal(source.test.boxes, expected.test.boxes)


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt"])
def test_missing_file(root, name):
    (root / "CUB_200_2011" / name).unlink()
    with pytest.raises(ValueError, match=rf"data.root: cannot read .*{name} .*data.caltech.edu.*prepare cub200"):
        load(root=str(root), **COUNTS)


def test_missing_boxes_are_missed_by_who_asks_for_them(root):
    whole = load(root=str(root), **COUNTS)
    (root / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    source = load(root=str(root), **COUNTS)
    assert source.train.images == whole.train.images and source.train.boxes is None
    ImageDataset(source.train, Transforms(size=8, resize=8).test)
    with pytest.raises(ValueError, match=r"transform\.crop_to_box=true is not possible: .*bounding_boxes\.txt"):
        ImageDataset(source.train, Transforms(size=8, resize=8).test, crop_to_box=True)


def test_class_folders_alone_are_read_by_their_numbers(root, tmp_path):
    whole = load(root=str(root), **COUNTS)
    folder = root / "CUB_200_2011"
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        (folder / name).unlink()
    folder.rename(root / "cub200")
    source = load(root=str(root), **COUNTS)
    for found, expected in ((source.train, whole.train), (source.test, whole.test)):
        assert found.class_names == expected.class_names and found.labels.tolist() == expected.labels.tolist()
        assert {image.name for image in found.images} == {image.name for image in expected.images}
    with pytest.raises(ValueError, match=r"data\.test_classes=100 \(found 2\)"):
        load(root=str(root), **COUNTS | {"test_classes": 100})
    (root / "cub200" / "images" / CLASSES[0]).rename(root / "cub200" / "images" / "Albatross")
    with pytest.raises(ValueError, match=r"the class folder Albatross in images/ does not begin with its official"):
        load(root=str(root), **COUNTS)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_that_went_through_windows(root, encoding):
    whole = load(root=str(root), **COUNTS)
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        file = root / "CUB_200_2011" / name
        text = file.read_text().replace("/", "\\").replace("\n", "\r\n")
        file.write_bytes(text.encode(encoding))
    if encoding == "utf-16":
        with pytest.raises(ValueError, match=r"data\.root: .*images\.txt is in UTF-16: save it as UTF-8"):
            load(root=str(root), **COUNTS)
        return
    source = load(root=str(root), **COUNTS)
    assert source.train.images == whole.train.images and np.array_equal(source.test.boxes, whole.test.boxes)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data.root: cannot read .*images.txt \(No such file"):
        load(root=str(tmp_path / "nowhere"))


def test_counts(root):
    with pytest.raises(ValueError, match=r"data.test_classes=100 .found 0.*data.train_images=5864 .found 12") as error:
        load(root=str(root))
    assert "prepare cub200" in str(error.value) and "\n" not in str(error.value)
    load(root=str(root), train_classes=2, test_classes=None, train_images=None, test_images=None)


@pytest.mark.parametrize("key", ["test_classes", "train_images", "test_images"])
def test_every_count_is_checked(root, key):
    found = COUNTS[key]
    with pytest.raises(ValueError, match=rf"expected: data.{key}={found + 1} \(found {found}\)\. Get"):
        load(root=str(root), **COUNTS | {key: found + 1})


def test_images_that_no_file_lists_are_passed_over(root):
    folder = root / "CUB_200_2011" / "images"
    (folder / "005.Crested_Auklet").mkdir()
    for name in (CLASSES[0], "005.Crested_Auklet"):
        Image.new("RGB", (12, 10)).save(folder / name / "unlisted.jpg")
    source = load(root=str(root), **COUNTS)
    assert not any(image.name == "unlisted.jpg" for image in (*source.train.images, *source.test.images))


def test_missing_images_are_named(root):
    for file in sorted((root / "CUB_200_2011" / "images" / CLASSES[1]).iterdir())[:2]:
        file.unlink()
    with pytest.raises(ValueError, match=r"images.txt and the image folder disagree: 2 of 12 .*_0000_4.jpg"):
        load(root=str(root), **COUNTS)


def test_missing_class_folder_is_named(root):
    (root / "CUB_200_2011" / "images" / CLASSES[3]).rename(root / "elsewhere")
    with pytest.raises(ValueError, match=r"disagree: 3 of 12 .*004.Groove_billed_Ani"):
        load(root=str(root), **COUNTS)


def test_labels_that_are_not_the_folders(root):
    edit(root / "CUB_200_2011" / "image_class_labels.txt", "4 2\n", "4 1\n")
    with pytest.raises(ValueError, match=r"image_class_labels.txt and the image folder disagree: 002.* class 1 of 001"):
        load(root=str(root), **COUNTS)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "image_class_labels.txt",
            "12 4\n",
            "",
            r"disagree on 1 .* image 12 is only in images.txt\)",
        ),
        (
            "bounding_boxes.txt",
            "12 3.0 2.0 6.0 5.0\n",
            "",
            r"disagree on 1 .* image 12 is only in images.txt\)",
        ),
        (
            "image_class_labels.txt",
            "12 4\n",
            "12 4\n13 4\n",
            r"disagree on 1 .* image 13 is only in image_class",
        ),
        (
            "bounding_boxes.txt",
            "12 3.0",
            "13 1 1 2 2\n12 3.0",
            r"disagree on 1 .* image 13 is only in bounding_box",
        ),
        ("bounding_boxes.txt", "12 3.0 2.0 6.0 5.0\n", "12 3.0\n", "line 12 of .*'12 3.0', expected int float float"),
        ("image_class_labels.txt", "1 1\n", "1 one\n", "line 1 of .*'1 one', expected int int"),
        ("image_class_labels.txt", "12 4\n", "12 4\n7 3\n", r"_labels.txt lists 1 image more than once .*: image 7\)"),
        ("images.txt", "_0001_2.jpg", "_0000_1.jpg", r"images.txt lists 1 image more than once .*_0000_1.jpg\)"),
    ],
)
def test_broken_annotations(root, name, old, new, message):
    edit(root / "CUB_200_2011" / name, old, new)
    with pytest.raises(ValueError, match=message):
        load(root=str(root), **COUNTS)
