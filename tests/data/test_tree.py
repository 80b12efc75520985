"""Which files below a root are images, links, and what is passed over."""

import os

import pytest
from PIL import Image

from dml.data import folder
from dml.data.broken import find_broken, leave_out
from dml.data.cache import cache_images
from dml.data.dataset import ImageDataset
from dml.data.listed import unpacked
from dml.data.own_folders import make_tagged
from dml.data.transforms import Transforms
from dml.data.tree import readable
from tests.data.test_folder import contents, grow


def read(root):
    source = folder.load_to_test(root=str(root))
    return contents(source.test, root), dict(source.passed_over)


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.avif", "a.jp2", "a.webp", "a.tga", "a.qoi", "a.apng"])
def test_what_pillow_reads_is_an_image(tmp_path, name):
    grow(tmp_path, {"x": [name], "y": 1})
    assert read(tmp_path) == ({"x": [name], "y": ["0.png"]}, {})


def test_what_pillow_only_tells_apart_is_none():
    assert not readable().keys() & {".h5", ".grib", ".mpg", ".eps", ".pdf", ".wmf"}


def test_images_without_extension_are_known_by_their_content(tmp_path):
    grow(tmp_path, {"x": 1, "y": 1})
    Image.new("RGB", (2, 2)).save(tmp_path / "x" / "0001", "JPEG")
    (tmp_path / "x" / "LICENSE").write_text("Anyone may")
    (tmp_path / "x" / "empty").touch()
    assert read(tmp_path) == ({"x": ["0.png", "0001"], "y": ["0.png"]}, {"no extension": 2})


def test_what_is_passed_over_is_counted(tmp_path):
    grow(tmp_path, {"x": 1, "y": 1, "y/@eaDir": 3, "__MACOSX/x": 1, "lost+found": 0, "$RECYCLE.BIN": 1, ".git/x": 1})
    for name in ("x/a.txt", "x/B.TXT", "y/c.csv", "y/Thumbs.db", "y/.DS_Store", "readme.md"):
        (tmp_path / name).touch()
    found, passed_over = read(tmp_path)
    assert set(found) == {"x", "y"}
    assert passed_over == {
        **{".txt": 2, ".csv": 1, ".db": 1, ".md": 1, "hidden (names that begin with a dot)": 2},
        **{"@eaDir/": 1, "__MACOSX/": 1, "lost+found/": 1, "$RECYCLE.BIN/": 1},
    }


SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"


def test_folders_that_dml_writes_are_passed_over(tmp_path):
    grow(tmp_path, {"x": 1, "y": 1})
    before = read(tmp_path)
    assert before == ({"x": ["0.png"], "y": ["0.png"]}, {})
    for name in ("cache", "data/cache", "data/unpacked"):
        make_tagged(tmp_path / name)
        assert (tmp_path / name / "CACHEDIR.TAG").read_text().startswith(SIGNATURE)
        (tmp_path / name / "x.broken").touch()
    grow(tmp_path, {"data/unpacked/some/0000": 2, "outputs/day/time": ["retrieval.png"], "multirun/a": ["search.png"]})
    (tmp_path / "outputs" / "day" / "time" / ".hydra").mkdir()
    (tmp_path / "multirun" / "a" / "multirun.yaml").touch()
    runs = "folders of runs and sweeps (with .hydra or multirun.yaml)"
    assert read(tmp_path) == (before[0], {"caches (folders with CACHEDIR.TAG)": 3, runs: 2})
    # A folder that is named is read.
    (tmp_path / "x" / "CACHEDIR.TAG").write_text("no signature")
    (tmp_path / "CACHEDIR.TAG").write_text(SIGNATURE)
    assert read(tmp_path) == (before[0], {"caches (folders with CACHEDIR.TAG)": 3, runs: 2, ".tag": 2})


def test_a_cache_below_the_images_changes_no_class(tmp_path, capsys):
    """As with data.root=data data.cache_dir=data/cache: the second run reads what the first one read."""
    grow(tmp_path, {"x": 1, "y": 1, "z": 1})
    (tmp_path / "y" / "0.png").write_bytes(b"no")
    seen = []
    for _ in range(2):
        source = folder.load(root=str(tmp_path))
        where = {"folder": str(tmp_path / "cache"), "name": "x", "workers": 0, "progress": False}
        broken = find_broken([source.train, source.test], **where)
        whole, _ = leave_out(source, None, broken)
        assert list(broken) == [tmp_path / "y" / "0.png"]
        transforms = Transforms(size=8, resize=8)
        cache_images([ImageDataset(whole.test, transforms.test)], transforms.decode, place="disk", **where)
        unpacked([b"\0"], tmp_path / "unpacked" / "some", "data.file")
        seen.append((source.train.class_names, source.train.images, source.test.class_names, source.test.images))
    assert seen[0] == seen[1] and source.passed_over == {"caches (folders with CACHEDIR.TAG)": 2}
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {"", ".TAG", ".broken", ".pixels"}
    assert capsys.readouterr().out.count("Checking 3 images") == 1


def test_a_cache_without_a_tag_gets_one_unless_it_stands_beside_images(tmp_path):
    old, mixed, images = tmp_path / "old", tmp_path / "mixed", tmp_path / "images"
    grow(tmp_path, {"x": 1, "mixed/y": 1, "images": 1, "old": 0})
    for one in (old, mixed, images):
        (one / ".lock").touch()
        (one / "x.broken").touch()
    with pytest.raises(ValueError, match=r"old holds no image.* If it is data\.cache_dir of an earlier dml, remove it"):
        read(tmp_path)
    for one in (old, mixed, images):
        make_tagged(one)
    assert [(one / "CACHEDIR.TAG").exists() for one in (old, mixed, images)] == [True, False, False]


def test_annotations_beside_images_are_passed_over(tmp_path):
    grow(tmp_path, {"images/x": 1, "images/y": 1})
    for c in "xy":
        (tmp_path / "Annotation" / c).mkdir(parents=True)
        (tmp_path / "Annotation" / c / "0001").write_text("<annotation>")
    found, passed_over = read(tmp_path)
    assert set(found) == {"images/x", "images/y"}
    assert passed_over == {"no extension": 2, "Annotation/ (folders without images)": 2}
    grow(tmp_path, {"labels/x": 1})  # of things that are labels
    with pytest.raises(ValueError, match=r"data\.class_depth=2 makes 3 classes"):
        read(tmp_path)


def test_a_class_without_images_is_refused_with_what_it_holds(tmp_path):
    grow(tmp_path, {"x": 1, "y": 1, "z": 0})
    for i in range(3):
        (tmp_path / "z" / f"{i}.heic").touch()
    with pytest.raises(ValueError, match=rf"{tmp_path / 'z'} holds no image, but 3 \.heic"):
        read(tmp_path)


def test_an_empty_root_is_not_the_current_folder():
    with pytest.raises(ValueError, match=r"^data\.root= is empty"):
        folder.load(root="")


def test_links_are_followed(tmp_path):
    elsewhere, root = (
        grow(tmp_path / "elsewhere", {"b": 2, "deep/c": 1, "one": ["k.png"]}),
        grow(tmp_path / "r", {"a": 1}),
    )
    (root / "b").symlink_to(elsewhere / "b")
    (root / "c").symlink_to(elsewhere / "deep" / "c")
    (root / "a" / "l.png").symlink_to(elsewhere / "one" / "k.png")
    assert read(root) == ({"a": ["0.png", "l.png"], "b": ["0.png", "1.png"], "c": ["0.png"]}, {})
    link = tmp_path / "link"
    link.symlink_to(root)
    assert read(link)[0].keys() == {"a", "b", "c"}


def test_a_folder_that_is_reached_twice_is_read_once(tmp_path):
    grow(tmp_path, {"a": 1, "z": 1})
    (tmp_path / "again").symlink_to(tmp_path / "z")  # before z by name
    (tmp_path / "a" / "up").symlink_to(tmp_path)  # a loop
    assert read(tmp_path) == ({"a": ["0.png"], "z": ["0.png"]}, {"links to folders that are read elsewhere": 2})


@pytest.mark.parametrize("name", ["k.png", "k"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, name):
    grow(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / name).symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=rf"^data\.root: the link {tmp_path / 'a' / name} leads nowhere .*gone\.png"):
        read(tmp_path)
    (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / name).symlink_to(name)  # to itself
    with pytest.raises(ValueError, match="leads nowhere"):
        read(tmp_path)


def test_an_image_of_two_names_is_refused(tmp_path):
    grow(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b" / "k.png").symlink_to(tmp_path / "a" / "0.png")
    with pytest.raises(ValueError, match=r"b/k\.png and .*a/0\.png are one image"):
        read(tmp_path)


def test_sides_share_no_image_by_a_link(tmp_path):
    train, test = grow(tmp_path / "x", {"a": 1}), grow(tmp_path / "y", {"b": 1})
    (test / "c").symlink_to(train / "a")
    with pytest.raises(
        ValueError, match=r"data\.train_root and data\.test_root share images: .*a/0\.png and .*c/0\.png"
    ):
        folder.load(train_root=str(train), test_root=str(test))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    grow(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(ValueError, match=rf"^data\.root: the folder {tmp_path / 'b'} cannot be read"):
            read(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o700)
