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


def test_lists_in_info_files_and_images_in_images(folder):
    official = load(root=str(folder), **COUNTS)
    copy = folder.parent / "copy" / "online_products"
    (copy / "Info_Files").mkdir(parents=True)
    (copy / "images").mkdir()
    for path in list(folder.iterdir()):
        path.rename(copy / ("Info_Files" if path.suffix == ".txt" else "images") / path.name)
    for root in (copy, copy.parent):
        source = load(root=str(root), **COUNTS)
        for found, expected in ((source.train, official.train), (source.test, official.test)):
            assert found.class_names == expected.class_names and found.labels.tolist() == expected.labels.tolist()
            assert found.images == [copy / "images" / path.relative_to(folder) for path in expected.images]


def test_a_list_that_went_through_windows(folder):
    official = load(root=str(folder), **COUNTS)
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        text = (folder / name).read_text().replace("/", "\\").replace("\n", "\r\n")
        (folder / name).write_bytes(text.encode("utf-8-sig"))
    source = load(root=str(folder), **COUNTS)
    assert source.train.images == official.train.images and source.test.images == official.test.images


@pytest.mark.parametrize("name", ["Ebay_train.txt", "Ebay_test.txt"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"data.root: cannot read .*{name} .*cvgl.stanford.edu"):
        load(root=str(folder), **COUNTS)


def test_counts(folder):
    with pytest.raises(ValueError, match=r"data.train_images=59551 .found 3.*data.test_images=60502 .found 3"):
        load(root=str(folder))


@pytest.mark.parametrize("key", COUNTS)
def test_every_count_is_checked(folder, key):
    found = COUNTS[key]
    with pytest.raises(ValueError, match=rf"expected: data.{key}={found + 1} \(found {found}\)\. Get"):
        load(root=str(folder), **COUNTS | {key: found + 1})


def test_missing_image(folder):
    (folder / "chair_final" / "114_0.JPG").unlink()
    with pytest.raises(ValueError, match=r"Ebay_test.txt and the image folder disagree: 1 of 3 .*114_0.JPG"):
        load(root=str(folder), **COUNTS)


def test_class_on_both_sides(folder):
    write(folder, "Ebay_test.txt", [*TEST, "7 2 2 chair_final/112_0.JPG"])
    with pytest.raises(ValueError, match=r"1 test classes of sop are training classes too \(the first: 2\)"):
        load(root=str(folder), **COUNTS)


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("Ebay_train.txt", [*TRAIN, "9 2 2 chair_final/112_0.JPG"], r"Ebay_train.txt lists 1 .*112_0.JPG\)"),
        ("Ebay_test.txt", [*TEST[1:], TEST[1]], r"Ebay_test.txt lists 1 image more than once .*114_0.JPG\)"),
        ("Ebay_test.txt", [*TEST[1:], "4 3 1 bicycle_final/111_0.JPG"],
         r"Ebay_train.txt and Ebay_test.txt both list 1 image .*111_0.JPG\)"),
    ],
)  # fmt: skip
def test_image_listed_twice(folder, name, rows, said):
    write(folder, name, rows)
    with pytest.raises(ValueError, match=said):
        load(root=str(folder), **COUNTS)


def test_images_that_no_file_lists_are_passed_over(folder):
    Image.new("L", (4, 4)).save(folder / "chair_final" / "unlisted.JPG")
    source = load(root=str(folder), **COUNTS)
    assert not any(image.name == "unlisted.JPG" for image in (*source.train.images, *source.test.images))


def test_line_without_path(folder):
    write(folder, "Ebay_train.txt", [*TRAIN, "8 2 2"])
    with pytest.raises(ValueError, match=r"line 5 of .*'8 2 2', expected int int int str"):
        load(root=str(folder), **COUNTS)
