"""Trees of more than one level: which folders are classes, sides of a split, and what is refused."""

import re

import pytest

from dml.data import folder
from tests.data.test_folder import grow

VIEWS = {f"item{i:02}/{view}": 2 for i in range(4) for view in ("front", "back")}
OMNIGLOT = {f"{name}/character{c:02}": 2 for name, many in (("Greek", 4), ("Latin", 3)) for c in range(1, many + 1)}


def names(source):
    return source.train.class_names, source.test.class_names


@pytest.mark.parametrize("sides", [("train", "val"), ("train", "valid"), ("training", "testing"), ("Train", "TEST")])
def test_sides_of_one_root(tmp_path, sides):
    train, test = sides
    source = folder.load(root=str(grow(tmp_path, {f"{train}/a": 2, f"{train}/b": 1, f"{test}/c": 3})))
    assert names(source) == (("a", "b"), ("c",)) and (len(source.train), len(source.test)) == (3, 3)
    assert source.class_disjoint and not source.leak and source.gallery is None
    assert all(image.is_relative_to(tmp_path / test) for image in source.test.images)


def test_sides_of_the_same_classes_are_not_taken_for_unseen_ones(tmp_path):
    classes = {f"{side}/{c}": 2 for side in ("x/train", "y/val") for c in "abc"}
    grow(tmp_path / "one", {name[2:]: 2 for name in classes})
    grow(tmp_path, classes)
    of_two = folder.load(train_root=str(tmp_path / "x/train"), test_root=str(tmp_path / "y/val"))
    for source in (folder.load(root=str(tmp_path / "one")), of_two):
        assert not source.class_disjoint and "all 3 test classes are training classes" in source.leak
        left, validation = source.hold_out(0.5)  # of the images of each class
        assert left.train.num_classes == validation.num_classes == 3 and left.leak == source.leak


def test_classes_are_the_same_by_the_names_of_their_folders(tmp_path):
    # Other paths: x/cat and y/cat.
    train, test = grow(tmp_path / "1", {"x/cat": 1, "x/dog": 1}), grow(tmp_path / "2", {"y/cat": 1, "y/dog": 1})
    assert "all 2 test classes" in folder.load(train_root=str(train), test_root=str(test)).leak
    grow(test, {"y/cow": 1})
    with pytest.raises(ValueError, match=r"2 test classes .* \(the first: cat\), and 1 are not"):
        folder.load(train_root=str(train), test_root=str(test))


def test_names_that_are_there_twice_in_a_tree_tell_nothing(tmp_path):
    train, test = grow(tmp_path / "1", OMNIGLOT), grow(tmp_path / "2", {"Korean/character01": 1})
    assert not folder.load(train_root=str(train), test_root=str(test)).leak


def test_queries_have_their_gallery(tmp_path):
    tree = {"train/a": 1, "query/c": 1, "query/b": 2, "gallery/b": 3, "gallery/d": 1, "gallery/c": 1}
    source = folder.load(root=str(grow(tmp_path, tree)))
    assert source.train.class_names == ("a",) and source.gallery is not None
    assert source.test.class_names == source.gallery.class_names == ("b", "c", "d")  # equal labels, equal classes
    assert source.test.labels.tolist() == [0, 0, 1] and source.gallery.labels.tolist() == [0, 0, 0, 1, 2]


def test_a_side_that_is_not_read_is_counted(tmp_path):
    source = folder.load(root=str(grow(tmp_path, {"train/a": 1, "val/b": 4, "test/c": 2})))
    assert names(source) == (("a",), ("c",)) and source.passed_over == {"images of the side val/": 4}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"train": 2, "val": 2}, "look like the sides of a split, but train holds the image 0.png and no class"),
        ({"train/a": 1, "val/b": 1, "more/c": 1}, r"also more: give data\.train_root=DIR and data\.test_root=DIR"),
        ({"query/a": 1, "gallery/a": 1}, r"no folder train: evaluate\.py can test it"),
        ({"train/a": 1, "test/b": 1, "gallery/b": 1}, "the queries of a gallery are called query"),
        ({"train/a": 1, "Train/b": 1, "test/c": 1}, "holds both Train and train"),
        ({"train/a": 1, "training/b": 1, "test/c": 1}, "which of them trains"),
        ({"train/a": 1, "test": 2}, r"test holds the image 0.png and no class folder.*or give .*data\.train_root"),
    ],
)
def test_sides_that_are_none(tmp_path, tree, said):
    with pytest.raises(ValueError, match=rf"^data\.root={tmp_path}.*{said}"):
        folder.load(root=str(grow(tmp_path, tree)))


def test_queries_are_tested_where_there_is_a_gallery(tmp_path):
    source = folder.load(root=str(grow(tmp_path, {"train/a": 1, "test/b": 5, "query/c": 1, "gallery/c": 2})))
    assert names(source) == (("a",), ("c",)) and source.passed_over == {"images of the side test/": 5}


@pytest.mark.parametrize("sides", [("train_images", "test_images"), ("TrainSet", "TestSet"), ("train", "dev"),
    ("all/train", "all/val"), ("seg_train/seg_train", "seg_test/seg_test"), ("train2017", "val2017")])  # fmt: skip
@pytest.mark.parametrize("classes", ["ab/ab", "ab/cd"])
def test_what_looks_like_sides_is_not_split_by_name(tmp_path, sides, classes):
    grow(tmp_path, {f"{side}/{c}": 2 for side, some in zip(sides, classes.split("/"), strict=True) for c in some})
    with pytest.raises(
        ValueError, match=rf"^data\.root={tmp_path} holds .* look like the sides of a split: "
    ) as caught:
        folder.load(root=str(tmp_path))
    # What the message says can be given.
    said = re.search(r"data\.train_root=(\S+) data\.test_root=(\S+), or data\.class_depth=(\d)", str(caught.value))
    train_root, test_root, depth = said.groups()
    source = folder.load(train_root=train_root, test_root=test_root)
    assert source.class_disjoint == (classes == "ab/cd") and len(source.train) == len(source.test) == 4
    assert folder.load(root=str(tmp_path), class_depth=int(depth)).train.num_classes == 2


def test_things_may_be_called_like_sides(tmp_path):
    grow(tmp_path, {"train_station": 1, "test_tube": 1, "dev": 1, "vehicles/train": 1})
    source = folder.load_to_test(root=str(tmp_path))
    assert source.test.class_names == ("dev", "test_tube", "train_station", "vehicles/train")
    things = folder.load(root=str(grow(tmp_path / "1", {"train": 1, "test": 1, "car": 1, "bus": 1})))
    assert names(things) == (("bus", "car"), ("test", "train"))
    for number, tree in enumerate([{"train": 1, "test": 1}, {"train": 1, "test": 1, "train_masks": 1, "masks": 1}]):
        grow(tmp_path / f"flat{number}", tree)  # images of which a list would say the class
        with pytest.raises(ValueError, match=r"data\.class_depth=1 if these folders are classes"):
            folder.load(root=str(tmp_path / f"flat{number}"))
        assert folder.load(root=str(tmp_path / f"flat{number}"), class_depth=1).train.class_names[-1] != "train"


def test_sides_of_links_are_not_taken_for_nothing(tmp_path):
    def link(name, to):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / to)

    grow(tmp_path / "1", {"train/a": 1, "train/b": 1})
    link("1/test", "1/train")
    with pytest.raises(ValueError, match=r"1/test is a link to .*1/train, which is on another side"):
        folder.load(root=str(tmp_path / "1"))
    grow(tmp_path / "2", {f"all/{c}": 1 for c in "abcd"})
    for name in ("train/a", "train/b", "test/c", "test/d"):
        link(f"2/{name}", f"2/all/{name[-1]}")
    with pytest.raises(ValueError, match=r"also all: give data\.train_root=DIR"):
        folder.load(root=str(tmp_path / "2"))
    source = folder.load(train_root=str(tmp_path / "2/train"), test_root=str(tmp_path / "2/test"))
    assert names(source) == (("a", "b"), ("c", "d"))
    grow(tmp_path / "3", {"train/a": 1, "test/b": 1})  # harmless: a loop, and a side that is not read
    link("3/train/up", "3")
    link("3/val", "3/test")
    assert names(folder.load(root=str(tmp_path / "3"))) == (("a",), ("b",))


def test_an_umlaut_is_one_name_however_it_is_written(tmp_path):
    source = folder.load(root=str(grow(tmp_path, {"train/\u00fc": 1, "val/u\u0308": 1})))
    assert not source.class_disjoint and "all 1 test classes" in source.leak


def test_a_class_may_be_called_train(tmp_path):
    source = folder.load(root=str(grow(tmp_path, {"bus": 1, "train": 1, "tram": 1, "car": 1})))
    assert names(source) == (("bus", "car"), ("train", "tram"))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            VIEWS,
            r"'back', 'front'; .*data\.class_depth=1 makes 4 classes \(the first: item00\); data\.class_depth=2 makes "
            r"8 classes \(the first: item00/back\).*data\.train_root",
        ),
        # A view is missing; numbered views; CLASS/side; sides of unusual names.
        ({**VIEWS, "item9/front": 1}, r"data\.class_depth=1 makes 5"),
        ({f"item{i}/{view}": 1 for i in "ab" for view in "123"}, r"data\.class_depth=1 makes 2"),
        ({f"{c}/{side}": 1 for c in "abc" for side in ("train", "test")}, r"data\.class_depth=1 makes 3"),
        ({f"part{i}/{c}": 1 for i in "12" for c in "abc"}, r"data\.train_root"),
        # Only some have views.
        ({"item1/front": 1, "item1/back": 1, "item2": 1}, r"some folders .* stand 1 below it, others 2"),
    ],
)
def test_trees_that_can_be_read_in_two_ways_are_refused(tmp_path, tree, said):
    with pytest.raises(ValueError, match=rf"^data\.root={tmp_path} can be read in more than one way.*{said}"):
        folder.load(root=str(grow(tmp_path, tree)))


def test_the_depth_of_classes(tmp_path):
    grow(tmp_path, {**VIEWS, "item03": ["k.png"]})
    source = folder.load(root=str(tmp_path), class_depth=1)
    assert names(source) == (("item00", "item01"), ("item02", "item03"))
    assert source.test.labels.tolist() == [0] * 4 + [1] * 5
    with pytest.raises(ValueError, match=r"k\.png stands above the class folders, which data\.class_depth=2"):
        folder.load(root=str(tmp_path), class_depth=2)
    (tmp_path / "item03" / "k.png").unlink()
    source = folder.load(root=str(tmp_path), class_depth=2, train_fraction=0.3)  # 2.4 of 8
    assert names(source)[0] == ("item00/back", "item00/front") and len(source.test.class_names) == 6


def test_depth_is_that_below_a_side(tmp_path):
    tree = {f"{side}/{item}/{view}": 1 for side, item in (("train", "a"), ("val", "b")) for view in ("front", "back")}
    assert names(folder.load(root=str(grow(tmp_path, tree)), class_depth=1)) == (("a",), ("b",))


def test_no_folder_of_classes_is_cut(tmp_path):
    tree = {f"animals/{c}": 1 for c in "abcde"} | {f"plants/{c}": 1 for c in "vw"} | {"tools/x": 1}
    source = folder.load(root=str(grow(tmp_path / "three", tree)))
    assert {name.split("/")[0] for name in source.train.class_names} == {"animals"} and len(source.notes) == 1
    assert "gives 5 classes to train and not 4" in source.notes[0]
    # One folder around all of them is none of these.
    source = folder.load(root=str(grow(tmp_path / "one", {f"images/{c}": 1 for c in "abcd"})))
    assert names(source) == (("images/a", "images/b"), ("images/c", "images/d")) and not source.notes


def test_a_folder_within_each_class_tells_nothing(tmp_path):
    tree = {f"{side}/{c}/images": 1 for side in ("train", "val") for c in "abc"}
    assert "all 3" in folder.load(root=str(grow(tmp_path, tree))).leak  # not for the name `images`
    assert names(folder.load(root=str(tmp_path / "train"))) == (("a/images", "b/images"), ("c/images",))


def test_omniglot_is_known_by_its_names(tmp_path):
    source = folder.load(root=str(grow(tmp_path, OMNIGLOT)), train_fraction=0.3)
    assert names(source)[0] == ("Greek/character01", "Greek/character02") and not source.notes


def test_small_classes_are_left_out_and_counted(tmp_path):
    grow(tmp_path, {"a": 1, "b": 3, "c": 2, "d": 4})
    source = folder.load(root=str(tmp_path), min_images=3)
    assert names(source) == (("b",), ("d",)) and source.train.labels.tolist() == [0] * 3
    assert list(source.passed_over.values()) == [2, 3] and all("data.min_images=3" in k for k in source.passed_over)
    with pytest.raises(ValueError, match=r"data\.min_images=5 leaves no class .* has 4"):
        folder.load(root=str(tmp_path), min_images=5)


def test_all_classes_are_there_to_be_tested(tmp_path):
    grow(tmp_path / "flat", {"a": 1, "b": 2, "c": 3})
    for key in ("root", "test_root"):
        source = folder.load_to_test(**{key: str(tmp_path / "flat")}, min_images=2)
        assert source.test.class_names == ("b", "c") and len(source.train) == source.train.num_classes == 0
    # Of two sides the one to test.
    grow(tmp_path / "sides", {"train/a": 1, "query/b": 1, "gallery/b": 2})
    source = folder.load_to_test(root=str(tmp_path / "sides"))
    assert (len(source.test), source.gallery and len(source.gallery)) == (1, 2)
    for given in ({}, {"root": "a", "test_root": "b"}):
        with pytest.raises(ValueError, match="one of them"):
            folder.load_to_test(**given)


def test_validation_cuts_no_folder_of_classes(tmp_path):
    tree = {f"item{i}/{view}": 2 for i in range(8) for view in ("back", "front", "side")}
    source = folder.load(root=str(grow(tmp_path, tree)), class_depth=2)
    assert source.train.num_classes == 12
    left, validation = source.hold_out(0.4)  # 4.8 classes: up to the end of an item
    items = [{name.split("/")[0] for name in part.class_names} for part in (left.train, validation)]
    assert (
        validation.num_classes == 6 and not items[0] & items[1] and "6 of 12 training classes, not 5" in left.notes[-1]
    )
    folds = [source.hold_out(0.4, fold, 4)[1].class_names for fold in range(4)]
    assert sorted(sum(folds, ())) == sorted(source.train.class_names) and {len(fold) for fold in folds} == {3}
    # Two items: one has to be cut, and it is said.
    left, validation = folder.load(root=str(tmp_path), class_depth=2, train_fraction=0.25).hold_out(0.6)
    assert (left.train.num_classes, validation.num_classes) == (2, 4) and "some classes of a folder" in left.notes[-1]


def test_a_gallery_may_hold_the_queries_again(tmp_path):
    grow(tmp_path, {"train/x": 1, "query/a": 2, "query/b": 1, "gallery/b": 1})
    (tmp_path / "gallery" / "a").symlink_to(tmp_path / "query" / "a")
    (tmp_path / "gallery" / "b" / "again.png").symlink_to(tmp_path / "query" / "b" / "0.png")
    source = folder.load(root=str(tmp_path))
    assert source.gallery.labels.tolist() == [0, 0, 1, 1] and not source.passed_over
    assert source.own_index.tolist() == [0, 1, 3]
    (tmp_path / "gallery" / "b" / "seen.png").symlink_to(tmp_path / "train" / "x" / "0.png")
    with pytest.raises(ValueError, match=r"train/x/0\.png and .*gallery/b/seen\.png are one image.*cannot train"):
        folder.load(root=str(tmp_path))


def test_copies_of_queries_in_the_gallery_are_told(tmp_path):
    grow(tmp_path, {"train/a": 1, "query/b": 3, "query/c": 2, "gallery/b": 1, "gallery/c": 2})
    for number, image in enumerate(sorted(tmp_path.rglob("*.png"))):  # all different, of equal and of other sizes
        image.write_bytes(b"x" * (8 + number // 2) + bytes([number]))
    assert folder.load(root=str(tmp_path)).notes == ()
    (tmp_path / "gallery/b/copy.png").write_bytes((tmp_path / "query/b/1.png").read_bytes())
    (tmp_path / "gallery/b/link.png").symlink_to(tmp_path / "query/b/2.png")  # no query finds itself
    for source in (folder.load(root=str(tmp_path)), folder.load_to_test(root=str(tmp_path))):
        (note,) = source.notes
        assert "copies of 1 of 5 query images" in note and "gallery/b/copy.png of " in note and "b/1.png)" in note
