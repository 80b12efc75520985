"""Stanford Online Products in miniature: 2 training classes, 3 test classes, in the official text format."""

from pathlib import Path

import pytest
from PIL import Image

from dml.data.sop import load

HEADER = "image_id class_id super_class_id path"
TRAIN = ["1 1 1 bicycle_final/111_0.JPG", "2 1 1 bicycle_final/111_1.JPG", "3 2 2 chair_final/112_0.JPG"]
TEST = ["4 3 1 bicycle_final/113_0.JPG", "5 12 2 chair_final/114_0.JPG", "6 5 2 chair_final/115_0.JPG"]
COUNTS = {"train_classes": 2, "test_classes": 3, "train_images": 3, "test_images": 3}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Stanford_Online_Products"
    for row in TRAIN + TEST:
        file = folder / row.split()[-1]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(file)
    write(folder, "Ebay_train.txt", TRAIN)
    write(folder, "Ebay_test.txt", TEST)
    return folder


def write(folder: Path, name: str, rows: list[str]) -> None:
    (folder / name).write_text("\n".join([HEADER, *rows, ""]))


def test_official_split(folder):
    for root in (folder, folder.parent):
        source = load(root=str(root), **COUNTS)
        assert source.train.class_names == ("1", "2") and source.train.labels.tolist() == [0, 0, 1]
        assert source.test.class_names == ("3", "5", "12") and source.test.labels.tolist() == [0, 2, 1]
        assert source.test.images[1] == folder / "chair_final" / "114_0.JPG"
        assert source.gallery is None and source.class_disjoint


@pytest.mark.parametrize("name", ["Ebay_train.txt", "Ebay_test.txt"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"data.root: cannot read .*{name} .*cvgl.stanford.edu"):
        load(root=str(folder), **COUNTS)


def test_counts(folder):
    with pytest.raises(ValueError, match=r"data.train_images=59551 .found 3.*data.test_images=60502 .found 3"):
        load(root=str(folder))


def test_missing_image(folder):
    (folder / "chair_final" / "114_0.JPG").unlink()
    with pytest.raises(ValueError, match=r"Ebay_test.txt and the image folder disagree: 1 of 3 .*114_0.JPG"):
        load(root=str(folder), **COUNTS)


def test_class_on_both_sides(folder):
    write(folder, "Ebay_test.txt", [*TEST, "7 2 2 chair_final/112_0.JPG"])
    with pytest.raises(ValueError, match=r"1 test classes of sop are training classes too \(the first: 2\)"):
        load(root=str(folder), **COUNTS)


def test_line_without_path(folder):
    write(folder, "Ebay_train.txt", [*TRAIN, "8 2 2"])
    with pytest.raises(ValueError, match=r"line 5 of .*'8 2 2', expected int int int str"):
        load(root=str(folder), **COUNTS)
