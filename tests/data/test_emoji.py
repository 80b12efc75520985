"""The packaged emoji: counts, the rule of the split, and that nothing is on both sides."""

import hashlib
import zipfile

import numpy as np
import pytest

from dml.data import emoji


@pytest.fixture(scope="module")
def source():
    return emoji.load()


def test_counts_and_shapes(source):
    assert (len(source.train), source.train.num_classes) == (2338, 426)
    assert (len(source.test), source.test.num_classes) == (2349, 427)
    for records in (source.train, source.test):
        assert records.images.shape[1:] == (96, 96, 3) and records.images.dtype == np.uint8
        assert np.bincount(records.labels).min() >= 4


def test_the_split_follows_the_hash_of_the_names(source):
    names = [*source.train.class_names, *source.test.class_names]
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert set(by_hash[len(names) // 2 :]) == set(source.test.class_names)


def test_what_is_left_out_is_in_the_archive_and_nowhere_else(source):
    with zipfile.ZipFile(emoji.PACKAGED / "emoji.zip") as archive:
        packaged = {name.split("/")[1] for name in archive.namelist()}
    used = {*source.train.class_names, *source.test.class_names}
    assert emoji.LEFT_OUT.keys() <= packaged and packaged - emoji.LEFT_OUT.keys() == used
    assert set(emoji.LEFT_OUT.values()) - {"cricket"} <= used  # its look-alike stays


def test_no_picture_is_on_both_sides(source):
    train, test = ({image.tobytes() for image in records.images} for records in (source.train, source.test))
    assert not train & test


def test_a_mended_archive_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(emoji.PACKAGED / "emoji.zip") as archive, zipfile.ZipFile(tmp_path / "emoji.zip", "w") as part:
        for name in archive.namelist()[:300]:
            part.writestr(name, archive.read(name))
    (tmp_path / "emoji_test_classes.txt").write_text("alembic\nairplane-departure\n")
    monkeypatch.setattr(emoji, "PACKAGED", tmp_path)
    with pytest.raises(ValueError, match=r"is not the emoji that is expected: data.train_images=2338 \(found"):
        emoji.load()
