"""Cars196 in miniature: 4 classes of 3 images, as cars_annos.mat, as the devkit's pair, and as class folders."""

from pathlib import Path

import numpy as np
import pytest
from numpy.lib.recfunctions import repack_fields
from PIL import Image
from scipy.io import loadmat, savemat

from dml.data.cars196 import load

NAMES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012", "smart fortwo 2012")
COUNTS = {"train_classes": 2, "test_classes": 2, "train_images": 6, "test_images": 6}
BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def write_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(file)


def box(number: int) -> tuple[int, int, int, int]:
    return number, 1, 200 + number, 300


def write_mat(file: Path, name_field: str, rows: list[tuple[int, str, int]], **others: object) -> None:
    """The struct array `annotations` as MATLAB writes it: 1 x N, every value a 1 x 1 array; class_names: a cell."""
    fields = [*((field, object) for field in BOX), ("class", object), (name_field, object)]
    annotations = np.empty((1, len(rows)), dtype=fields)
    for i, (number, name, label) in enumerate(rows):
        corners = [np.array([[value]], np.uint16) for value in box(number)]
        annotations[0, i] = (*corners, np.array([[label]], np.uint8), name)
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"annotations": annotations, **others})


def cell(names: tuple[str, ...]) -> np.ndarray:
    return np.array([names], dtype=object)


def write_single(root: Path) -> None:
    rows = [(number, f"car_ims/{number:06d}.jpg", 1 + (number - 1) // 3) for number in range(1, 13)]
    for _, path, _ in rows:
        write_image(root / path)
    write_mat(root / "cars_annos.mat", "relative_im_path", rows, class_names=cell(NAMES))


def write_pair(root: Path, labels_at_root: bool = False, nested: bool = False) -> None:
    """Train has images 1, 2 and test image 3 of each class; their file names start at 00001.jpg on both sides."""
    for side, numbers in (("train", (1, 2)), ("test", (3,))):
        rows = [(3 * c + i, c + 1) for c in range(4) for i in numbers]
        named = [(number, f"{n:05d}.jpg", label) for n, (number, label) in enumerate(rows, start=1)]
        for _, name, _ in named:
            write_image(root / f"cars_{side}" / (f"cars_{side}" if nested else "") / name)
        file = "cars_train_annos.mat" if side == "train" else "cars_test_annos_withlabels.mat"
        folder = root if side == "test" and labels_at_root else root / "devkit"
        write_mat(folder / file, "fname", named)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cell(NAMES)})


def write_folders(root: Path, names: tuple[str, ...], split: bool) -> None:
    for name in names:
        for i in range(3):
            write_image(root / (("train", "test")[i % 2] if split else "") / name / f"{i}.jpg")


def test_single_annotation_file(tmp_path):
    write_single(tmp_path)
    source = load(root=str(tmp_path), **COUNTS)
    assert source.train.class_names == NAMES[:2] and source.test.class_names == NAMES[2:]
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [path.name for path in source.test.images[:2]] == ["000007.jpg", "000008.jpg"]
    assert source.train.boxes is not None and source.test.boxes is not None
    assert source.train.boxes.tolist() == [list(box(number)) for number in range(1, 7)]
    assert tuple(source.test.boxes[-1]) == box(12)


@pytest.mark.parametrize("labels_at_root", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_pair_of_the_devkit(tmp_path, labels_at_root, nested):
    write_pair(tmp_path, labels_at_root, nested)
    source = load(root=str(tmp_path), **COUNTS)
    assert source.train.class_names == NAMES[:2] and source.test.class_names == NAMES[2:]
    assert source.train.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert [(path.parent.name, path.name) for path in source.train.images[3:]] == [
        ("cars_train", "00004.jpg"), ("cars_test", "00001.jpg"), ("cars_test", "00002.jpg")
    ]  # fmt: skip
    assert source.train.boxes is not None
    assert [tuple(b) for b in source.train.boxes] == [box(n) for n in (1, 2, 4, 5, 3, 6)]
    assert all(path.is_file() for path in source.test.images)


def test_pair_without_class_names(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "devkit" / "cars_meta.mat").unlink()
    assert load(root=str(tmp_path), **COUNTS).test.class_names == ("3", "4")


@pytest.mark.parametrize("split", [False, True])
def test_class_folders(tmp_path, split):
    names = tuple(name.replace("/", "-") for name in NAMES)
    write_folders(tmp_path, names, split)
    source = load(root=str(tmp_path), **COUNTS)
    assert source.train.class_names == names[:2] and source.test.class_names == names[2:]
    assert sorted(source.train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    for image, label in zip(source.test.images, source.test.labels, strict=True):
        assert image.parent.name == source.test.class_names[label]
    assert source.train.boxes is None


def test_class_folders_in_images(tmp_path):
    names = tuple(name.replace("/", "-") for name in NAMES)
    write_folders(tmp_path / "cars196" / "images", names, split=False)
    for root in (tmp_path, tmp_path / "cars196"):
        source = load(root=str(root), **COUNTS)
        assert source.train.class_names == names[:2] and source.test.class_names == names[2:]


def test_annotations_without_boxes(tmp_path):
    write_single(tmp_path)
    whole = load(root=str(tmp_path), **COUNTS)
    file = tmp_path / "cars_annos.mat"
    rows = loadmat(file, squeeze_me=True)["annotations"]
    kept = [name for name in rows.dtype.names if not name.startswith("bbox")]
    savemat(file, {"annotations": repack_fields(rows[kept]), "class_names": cell(NAMES)})
    source = load(root=str(tmp_path), **COUNTS)
    assert whole.train.boxes is not None and source.train.boxes is None
    assert source.train.images == whole.train.images and source.test.labels.tolist() == whole.test.labels.tolist()
    savemat(file, {"annotations": repack_fields(rows[[*kept, "bbox_x1"]]), "class_names": cell(NAMES)})
    with pytest.raises(ValueError, match="have no field bbox_x2, bbox_y1, bbox_y2"):
        load(root=str(tmp_path), **COUNTS)


def test_numbered_class_folders_are_in_order_of_number(tmp_path):
    write_folders(tmp_path, ("2", "10", "9", "100"), split=True)
    source = load(root=str(tmp_path), **COUNTS)
    assert source.train.class_names == ("2", "9") and source.test.class_names == ("10", "100")


def test_counts(tmp_path):
    write_single(tmp_path)
    with pytest.raises(ValueError, match=r"data.train_images=8054 .found 12.*Expected in data.root: car_ims/") as error:
        load(root=str(tmp_path))
    assert "kaggle" in str(error.value) and "\n" not in str(error.value)
    load(root=str(tmp_path), train_classes=1, test_classes=None, train_images=None, test_images=None)


@pytest.mark.parametrize("key", ["test_classes", "train_images", "test_images"])
def test_every_count_is_checked(tmp_path, key):
    write_single(tmp_path)
    found = COUNTS[key]
    with pytest.raises(ValueError, match=rf"expected: data.{key}={found + 1} \(found {found}\)\. Expected in"):
        load(root=str(tmp_path), **COUNTS | {key: found + 1})


def test_missing_image(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "cars_test" / "00002.jpg").unlink()
    with pytest.raises(ValueError, match=r"cars_test_annos_withlabels.mat and the image .*1 of 4.*cars_test.00002.jpg"):
        load(root=str(tmp_path), **COUNTS)


def test_missing_image_of_the_single_file(tmp_path):
    write_single(tmp_path)
    (tmp_path / "car_ims" / "000004.jpg").unlink()
    with pytest.raises(ValueError, match=r"cars_annos.mat and the image folder disagree: 1 of 12 .*000004.jpg"):
        load(root=str(tmp_path), **COUNTS)


def test_image_listed_twice(tmp_path):
    write_single(tmp_path / "single")
    rows = [(number, f"car_ims/{max(number, 2):06d}.jpg", 1 + (number - 1) // 3) for number in range(1, 13)]
    write_mat(tmp_path / "single" / "cars_annos.mat", "relative_im_path", rows, class_names=cell(NAMES))
    write_pair(tmp_path / "pair")
    write_mat(tmp_path / "pair" / "devkit" / "cars_test_annos_withlabels.mat", "fname",
              [(n, f"0000{min(n, 3)}.jpg", n) for n in range(1, 5)])  # fmt: skip
    for name, said in (
        ("single", "cars_annos.mat lists 1 image more than once .*car_ims.000002.jpg"),
        ("pair", "cars_test_annos_withlabels.mat lists 1 image more than once .*cars_test.00003.jpg"),
    ):
        with pytest.raises(ValueError, match=said):
            load(root=str(tmp_path / name), **COUNTS)


@pytest.mark.parametrize(("write", "folder"), [(write_single, "car_ims"), (write_pair, "cars_test")])
def test_images_that_no_file_lists_are_passed_over(tmp_path, write, folder):
    write(tmp_path)
    write_image(tmp_path / folder / "unlisted.jpg")
    source = load(root=str(tmp_path), **COUNTS)
    assert not any(image.name == "unlisted.jpg" for image in (*source.train.images, *source.test.images))


@pytest.mark.parametrize("name", ["cars_train_annos.mat", "cars_test_annos_withlabels.mat"])
def test_missing_file(tmp_path, name):
    write_pair(tmp_path)
    (tmp_path / "devkit" / name).unlink()
    with pytest.raises(ValueError, match=rf"data.root: cannot read .*{name} .*Expected in data.root"):
        load(root=str(tmp_path), **COUNTS)


def test_images_without_annotations(tmp_path):
    write_single(tmp_path)
    (tmp_path / "cars_annos.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(ValueError, match=r"data.root: cannot read .*cars_annos.mat"):
        load(root=str(tmp_path), **COUNTS)


def test_annotations_without_labels(tmp_path):
    write_pair(tmp_path)
    file = tmp_path / "devkit" / "cars_test_annos_withlabels.mat"
    annotations = np.empty((1, 1), dtype=[*((field, object) for field in BOX), ("fname", object)])
    annotations[0, 0] = (1, 1, 2, 2, "00001.jpg")
    savemat(file, {"annotations": annotations})
    with pytest.raises(ValueError, match=r"cars_test_annos_withlabels.mat have no field class"):
        load(root=str(tmp_path), **COUNTS)


def test_more_classes_than_names(tmp_path):
    write_single(tmp_path)
    rows = [(1, "car_ims/000001.jpg", 5)]
    write_mat(tmp_path / "cars_annos.mat", "relative_im_path", rows, class_names=cell(NAMES))
    with pytest.raises(ValueError, match="has classes from 5 to 5, but there are 4 class names"):
        load(root=str(tmp_path), **COUNTS)


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"data.root=.* holds no image .*Expected in data.root"):
        load(root=str(tmp_path))
    with pytest.raises(ValueError, match=r"data.root=.* is not a folder\. Expected in data.root"):
        load(root=str(tmp_path / "nowhere"))
