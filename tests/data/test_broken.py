"""Images that cannot be decoded are all found, once; what the system cannot read says nothing of an image."""

import numpy as np
import pytest
import torch
from PIL import Image

from dml.data import broken
from dml.data.broken import find_broken, leave_out
from dml.data.dataset import Records, Source


@pytest.fixture
def records(tmp_path):
    """12 images of 4 classes, 3 of them broken: numbers 1, 4 and 5."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{i:02}.{('jpg', 'png')[i % 2]}" for i in range(12)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (30, 20, 3)).astype(np.uint8)).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:-500])  # only decoding finds it
    paths[4].write_bytes(b"")
    paths[5].write_text("no image")
    return Records(paths, np.arange(12) // 3, tuple("abcd"))


def find(records, folder, workers=0):
    return find_broken([records], folder=str(folder), name="made", workers=workers, progress=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_broken_image_is_found_with_its_reason(records, tmp_path, workers):
    state = torch.get_rng_state()
    found = find(records, tmp_path / "found", workers)
    assert list(found) == [records.images[i] for i in (1, 4, 5)]
    assert "truncated" in found[records.images[1]] and "cannot identify" in found[records.images[5]]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_found_is_remembered_until_an_image_changes(records, tmp_path, capsys, monkeypatch):
    found = find(records, tmp_path)
    assert "Checking 12 images once" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(broken, "load_image", None)  # nothing is decoded
        assert find(records, tmp_path) == found
        assert find(records.subset(np.arange(11, -1, -1)), tmp_path) == found
    records.images[4].write_bytes(records.images[0].read_bytes())
    assert list(find(records, tmp_path)) == [records.images[i] for i in (1, 5)]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_system_cannot_read_is_an_error_and_not_remembered(records, tmp_path, workers):
    records.images[7].unlink()
    records.images[7].mkdir()
    with pytest.raises(ValueError, match=f"the image {records.images[7]} cannot be read: .*Is a directory"):
        find(records, tmp_path / "found", workers)
    assert sorted(file.name for file in (tmp_path / "found").iterdir()) == [".lock", "CACHEDIR.TAG"]
    records.images[7].rmdir()
    with pytest.raises(ValueError, match=f"the image {records.images[7]} cannot be read"):
        find(records, tmp_path / "found", workers)


def test_a_folder_that_cannot_be_written_is_named(records, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"data\.cache_dir={tmp_path / 'file'}: .* cannot be read or written"):
        find(records, tmp_path / "file")


def test_images_in_memory_are_whole(tmp_path):
    assert find(Records(np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2, ("a", "b")), tmp_path / "no") == {}
    assert not (tmp_path / "no").exists()


def test_the_others_keep_part_class_and_order(records):
    paths, named = records.images, ("x", "y", "z")
    source = Source(
        "made",
        Records(paths[:6], np.array([0, 1, 2, 0, 1, 1]), tuple("abc"), np.arange(24).reshape(6, 4)),
        Records(paths[6:9], np.array([0, 1, 2]), named),
        Records(paths[9:], np.array([2, 1, 0]), named),
    )
    validation = Records(paths[3:6], np.array([0, 1, 0]), ("e", "f"))
    # Training loses its only image of class c, validation its only one of f, queries and gallery one each.
    left, rest = leave_out(source, validation, dict.fromkeys((paths[2], paths[4], paths[6], paths[10]), "why"))
    assert left.train.images == [paths[i] for i in (0, 1, 3, 5)]
    assert left.train.class_names == ("a", "b") and left.train.labels.tolist() == [0, 1, 0, 1]
    assert left.train.boxes[:, 0].tolist() == [0, 4, 12, 20]
    assert rest.images == [paths[3], paths[5]] and rest.class_names == ("e",) and rest.labels.tolist() == [0, 0]
    assert left.test.images == paths[7:9] and left.test.labels.tolist() == [1, 2]
    assert left.gallery.labels.tolist() == [2, 0] and left.test.class_names == left.gallery.class_names == named
    with pytest.raises(ValueError, match=r"data\.on_error=skip leaves no image of the gallery part: all 3"):
        leave_out(source, validation, dict.fromkeys(paths[9:], "why"))
