"""In-Shop Clothes Retrieval in miniature: 2 training items, 2 test items with queries and gallery."""

from pathlib import Path

import pytest
from PIL import Image

from dml.data.inshop import load

ROWS = [
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("img/MEN/Denim/id_00000001/01_1_front.jpg", "id_00000001", "query"),
    ("img/MEN/Denim/id_00000001/01_2_side.jpg", "id_00000001", "gallery"),
    ("img/MEN/Denim/id_00000004/01_1_front.jpg", "id_00000004", "gallery"),
    ("img/MEN/Denim/id_00000004/01_2_side.jpg", "id_00000004", "gallery"),
    ("img/MEN/Denim/id_00000004/01_3_back.jpg", "id_00000004", "query"),
    ("img/MEN/Denim/id_00000003/01_1_front.jpg", "id_00000003", "train"),
]
COUNTS = {"train_classes": 2, "test_classes": 2, "train_images": 3, "test_images": 2, "gallery_images": 3}


def write_list(folder: Path, rows: list[tuple[str, str, str]], count: int | None = None) -> None:
    """list_eval_partition.txt, its columns padded with spaces as in the official file."""
    lines = [str(len(rows) if count is None else count), "image_name item_id evaluation_status "]
    lines += [f"{name:<60} {item} {status:<8}" for name, item, status in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def write_images(folder: Path) -> None:
    for name, _, _ in ROWS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


@pytest.fixture
def root(tmp_path):
    write_list(tmp_path / "Eval", ROWS)
    write_images(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["Eval", "Info_Files"])
def test_a_list_that_went_through_windows(root, place):
    official = load(root=str(root), **COUNTS)
    file = root / "Eval" / "list_eval_partition.txt"
    text = file.read_text().replace("/", "\\").replace("\n", "\r\n")
    file.unlink()
    (root / place).mkdir(exist_ok=True)
    (root / place / file.name).write_bytes(text.encode("utf-8-sig"))
    source = load(root=str(root), **COUNTS)
    assert source.test.images == official.test.images and source.gallery.images == official.gallery.images


def test_a_query_that_is_in_the_gallery_too_is_known(root):
    assert load(root=str(root), **COUNTS).own_index.tolist() == [-1, -1]
    (root / ROWS[6][0]).unlink()
    (root / ROWS[6][0]).symlink_to(root / ROWS[4][0])
    assert load(root=str(root), **COUNTS).own_index.tolist() == [-1, 1]


def test_queries_and_gallery_share_labels(root):
    source = load(root=str(root), **COUNTS)
    assert source.train.class_names == ("id_00000002", "id_00000003") and source.train.labels.tolist() == [0, 0, 1]
    assert source.gallery is not None and source.class_disjoint
    assert source.test.class_names == source.gallery.class_names == ("id_00000001", "id_00000004")
    assert source.test.labels.tolist() == [0, 1]
    assert source.gallery.labels.tolist() == [0, 1, 1]
    assert source.test.images[1] == root / ROWS[6][0]
    for records in (source.train, source.test, source.gallery):
        for image, label in zip(records.images, records.labels, strict=True):
            assert image.parent.name == records.class_names[label]


@pytest.mark.parametrize("images", ["", "Img"])
def test_other_places(tmp_path, images):
    write_list(tmp_path, ROWS)
    write_images(tmp_path / images)
    source = load(root=str(tmp_path), **COUNTS)
    assert all(path.is_file() for path in source.train.images)


def test_missing_file(root):
    (root / "Eval" / "list_eval_partition.txt").unlink()
    with pytest.raises(ValueError, match=r"data.root: cannot read .*list_eval_partition.txt .*mmlab.*Eval/"):
        load(root=str(root), **COUNTS)


def test_counts(root):
    with pytest.raises(ValueError, match=r"data.test_classes=3985 .found 2.*data.gallery_images=12612 .found 3"):
        load(root=str(root))


@pytest.mark.parametrize("key", COUNTS)
def test_every_count_is_checked(root, key):
    found = COUNTS[key]
    with pytest.raises(ValueError, match=rf"data.{key}={found + 1} \(found {found}\)"):
        load(root=str(root), **COUNTS | {key: found + 1})


def test_item_without_gallery(root):
    write_list(root / "Eval", [row for row in ROWS if row[1:] != ("id_00000001", "gallery")])
    with pytest.raises(ValueError, match=r"data.gallery_classes=2 \(found 1\)"):
        load(root=str(root), **COUNTS | {"gallery_images": 2})


def test_truncated_list(root):
    write_list(root / "Eval", ROWS[:-1], count=len(ROWS))
    with pytest.raises(ValueError, match="has 7 images, but its first line says '8'"):
        load(root=str(root), **COUNTS)


def test_empty_list(root):
    (root / "Eval" / "list_eval_partition.txt").write_text("")
    with pytest.raises(ValueError, match=r"list_eval_partition.txt has 0 images, but its first line says ''"):
        load(root=str(root), **COUNTS)


@pytest.mark.parametrize("status", ["train", "gallery"])
def test_image_listed_twice(root, status):
    write_list(root / "Eval", [*ROWS, (ROWS[2][0], "id_00000001", status)])
    with pytest.raises(ValueError, match=r"list_eval_partition.txt lists 1 image more .*id_00000001/01_1_front.jpg\)"):
        load(root=str(root), **COUNTS)


def test_images_that_no_file_lists_are_passed_over(root):
    Image.new("RGB", (4, 4)).save(root / "img" / "MEN" / "Denim" / "id_00000004" / "unlisted.jpg")
    source = load(root=str(root), **COUNTS)
    images = [*source.train.images, *source.test.images, *source.gallery.images]
    assert not any(image.name == "unlisted.jpg" for image in images)


def test_missing_image(root):
    (root / ROWS[4][0]).unlink()
    with pytest.raises(ValueError, match=r"list_eval_partition.txt and the image folder disagree: 1 of 8 .*_00000004"):
        load(root=str(root), **COUNTS)


@pytest.mark.parametrize("status", ["query", "gallery"])
def test_item_on_both_sides(root, status):
    write_list(root / "Eval", [*ROWS[:-1], (ROWS[-1][0], "id_00000002", status)])
    with pytest.raises(ValueError, match=r"test classes of inshop are training classes too \(the first: id_00000002\)"):
        load(root=str(root), **COUNTS)


def test_unknown_status(root):
    write_list(root / "Eval", [*ROWS[:-1], (*ROWS[-1][:2], "val")])
    with pytest.raises(ValueError, match="has the status val, expected train, query or gallery"):
        load(root=str(root), **COUNTS)
