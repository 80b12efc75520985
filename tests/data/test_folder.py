"""Trees of class folders."""

import numpy as np
import pytest
from PIL import Image

from dml.data import folder


def grow(root, classes):
    """{class path: file names or a number of files} -> a tree of tiny images."""
    for name, files in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file in [f"{i}.png" for i in range(files)] if isinstance(files, int) else files:
            Image.new("RGB", (2, 2)).save(root / name / file)
    return root


def contents(records, root):
    """{class: file names, in order} of records."""
    found = {name: [] for name in records.class_names}
    for path, label in zip(records.images, records.labels.tolist(), strict=True):
        assert path.parent == root / records.class_names[label]
        found[records.class_names[label]].append(path.name)
    return found


def test_first_and_second_half_by_class_name(tmp_path):
    grow(tmp_path, {"d": 2, "b": 3, "a": 1, "c": 4})
    source = folder.load(root=str(tmp_path))
    assert contents(source.train, tmp_path) == {"a": ["0.png"], "b": ["0.png", "1.png", "2.png"]}
    assert contents(source.test, tmp_path) == {"c": ["0.png", "1.png", "2.png", "3.png"], "d": ["0.png", "1.png"]}
    assert source.train.labels.tolist() == [0, 1, 1, 1] and source.test.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert source.class_disjoint and source.gallery is None and source.name == tmp_path.name


@pytest.mark.parametrize(("fraction", "train"), [(0.1, "a"), (0.3, "abc"), (0.9, "abcdefghi")])
def test_train_fraction(tmp_path, fraction, train):
    grow(tmp_path, dict.fromkeys("abcdefghij", 1))
    source = folder.load(root=str(tmp_path), train_fraction=fraction)
    assert "".join(source.train.class_names) == train
    assert "".join(source.train.class_names + source.test.class_names) == "abcdefghij"


def test_nested_trees_and_their_order(tmp_path):
    # By name, in which "a-x" comes before "a/x".
    grow(tmp_path, {"z/y/x": 1, "a/x": 2, "a-x": 1, "B": 1})
    records = folder.read_tree(tmp_path, "data.root")
    assert records.class_names == ("B", "a-x", "a/x", "z/y/x")
    assert contents(records, tmp_path)["a/x"] == ["0.png", "1.png"]


def test_numbers_are_sorted_as_numbers(tmp_path):
    grow(tmp_path, {"10": 1, "2": 1, "1": 1, "x10": 1, "x2": 1})
    assert folder.read_tree(tmp_path, "data.root").class_names == ("1", "2", "10", "x10", "x2")


@pytest.mark.parametrize(
    ("classes", "stray", "way"),
    [
        ({"": ["k.png"], "a": 1, "b": 1}, "k.png", "move it"),
        ({"a": ["k.png"], "a/x": 1, "b": 1}, "a/k.png", "class_depth=1"),
        ({"a/b": ["k.png"], "a/b/c/d": 1, "b/x": 1}, "a/b/k.png", "class_depth=2"),
    ],
)
def test_images_beside_class_folders_are_refused(tmp_path, classes, stray, way):
    with pytest.raises(ValueError, match=rf"^data\.root: the image {tmp_path / stray} stands beside .*{way}"):
        folder.read_tree(grow(tmp_path, classes), "data.root")


def test_images_without_any_class_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no class folders: put those of each class into a folder"):
        folder.load(root=str(grow(tmp_path, {"": 2})))


def test_files_are_sorted_and_only_images_count(tmp_path):
    grow(tmp_path, {"a": ["10.png", "2.jpg", "B.PNG", "c.jpeg", ".hidden.png"], "b": 1})
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "a" / "list.csv").write_text("")
    records = folder.read_tree(tmp_path, "data.root")
    assert contents(records, tmp_path)["a"] == ["10.png", "2.jpg", "B.PNG", "c.jpeg"]
    assert records.labels.dtype == np.int64


def test_hidden_folders_are_passed_over(tmp_path):
    grow(tmp_path, {"a": 1, ".git/x": 1, "b/.cache": 1, "b": 1})
    (tmp_path / ".empty").mkdir()
    assert folder.read_tree(tmp_path, "data.root").class_names == ("a", "b")


def test_a_hidden_folder_above_the_root_does_not_hide_it(tmp_path):
    root = grow(tmp_path / ".store" / "set", {"a": 1, "b": 1})
    assert folder.read_tree(root, "data.root").class_names == ("a", "b")


def test_a_class_of_one_image_is_kept(tmp_path):
    grow(tmp_path, {"a": 1, "b": 1})
    source = folder.load(root=str(tmp_path))
    assert (source.train.class_names, source.test.class_names) == (("a",), ("b",))
    assert len(source.train) == len(source.test) == 1


def test_one_root_for_each_side(tmp_path):
    train, test = grow(tmp_path / "x", {"a": 2, "c": 1}), grow(tmp_path / "y", {"b": 1, "d/e": 2})
    source = folder.load(train_root=str(train), test_root=str(test))
    assert contents(source.train, train) == {"a": ["0.png", "1.png"], "c": ["0.png"]}
    assert contents(source.test, test) == {"b": ["0.png"], "d/e": ["0.png", "1.png"]}


def test_a_class_on_both_sides_is_refused(tmp_path):
    train, test = grow(tmp_path / "x", {"a": 1, "b": 1}), grow(tmp_path / "y", {"b": 1, "c": 1})
    with pytest.raises(ValueError, match=r"1 test classes .*\bb\b"):
        folder.load(train_root=str(train), test_root=str(test))


def test_a_test_root_inside_the_train_root_is_refused(tmp_path):
    # The names differ (a and test/a), the images are the same.
    train, test = grow(tmp_path, {"a": 1, "test/b": 1}), tmp_path / "test"
    with pytest.raises(ValueError, match="test"):
        folder.load(train_root=str(train), test_root=str(test))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"train_root": "x"},
        {"test_root": "x"},
        {"root": "x", "train_root": "x", "test_root": "x"},
        {"root": "x", "train_root": "x"},
    ],
)
def test_anything_but_one_root_or_a_pair_is_refused(arguments):
    with pytest.raises(ValueError, match=r"data\.root=.*data\.train_root=.*data\.test_root="):
        folder.load(**arguments)


def test_missing_folders_are_refused(tmp_path):
    train = grow(tmp_path / "x", {"a": 1, "b": 1})
    missing = str(tmp_path / "none")
    with pytest.raises(ValueError, match=rf"data\.root={missing}\b"):
        folder.load(root=missing)
    with pytest.raises(ValueError, match=rf"data\.train_root={missing}\b"):
        folder.load(train_root=missing, test_root=str(train))
    with pytest.raises(ValueError, match=rf"data\.test_root={missing}\b"):
        folder.load(train_root=str(train), test_root=missing)
    with pytest.raises(ValueError, match=r"data\.root="):
        folder.load(root=str(train / "a" / "0.png"))


@pytest.mark.parametrize("name", ["empty", "deep/er"])
def test_empty_class_folders_are_refused(tmp_path, name):
    grow(tmp_path, {"a": 1, "b": 1, name: 0})
    with pytest.raises(ValueError, match=rf"data\.root\b.*{tmp_path / name}\b"):
        folder.load(root=str(tmp_path))
    (tmp_path / name / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=rf"data\.root\b.*{tmp_path / name}\b"):
        folder.load(root=str(tmp_path))


def test_a_root_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root\b"):
        folder.load(root=str(tmp_path))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0])
def test_impossible_fractions_are_refused(tmp_path, fraction):
    grow(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=rf"data\.train_fraction={fraction}\b"):
        folder.load(root=str(tmp_path), train_fraction=fraction)


@pytest.mark.parametrize(("classes", "fraction"), [("a", 0.5), ("abc", 0.1), ("abc", 0.9)])
def test_each_side_needs_a_class(tmp_path, classes, fraction):
    grow(tmp_path, dict.fromkeys(classes, 2))
    with pytest.raises(ValueError, match=rf"data\.train_fraction={fraction}\b"):
        folder.load(root=str(tmp_path), train_fraction=fraction)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    grow(tmp_path / "set", {"a": 1, "b": 1})
    assert folder.load(root="~/set").name == "set"
