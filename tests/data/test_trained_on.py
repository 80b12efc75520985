"""What a checkpoint carries of its training data, and what of other data was in it."""

import os

import numpy as np
import pytest
import torch

from dml.data.dataset import Records, Source
from dml.data.trained_on import TrainedOn, fingerprints


def records(names, seed=0):
    """One random image a name."""
    images = np.random.default_rng(seed).integers(0, 256, (len(names), 4, 4)).astype(np.uint8)
    return Records(images, np.arange(len(names)), tuple(names))


def test_images_are_the_same_by_their_content(tmp_path):
    big = bytearray(os.urandom(300_000))
    (tmp_path / "a.jpg").write_bytes(big)
    (tmp_path / "b").write_bytes(big)
    paths = [tmp_path / "a.jpg", tmp_path / "b"]
    for place in (0, 150_000, len(big) - 1):  # the first, a middle and the last part
        changed = big.copy()
        changed[place] ^= 1
        paths.append(tmp_path / f"{place}.jpg")
        paths[-1].write_bytes(changed)
    (tmp_path / "longer").write_bytes(big + b"0")
    found = fingerprints([*paths, tmp_path / "longer"])
    assert found.dtype == np.int64 and found[0] == found[1]
    assert len(set(found[[0, 2, 4, 5]].tolist())) == 4
    arrays = np.zeros((3, 2, 3), np.uint8)
    arrays[2, 1, 2] = 1
    of_arrays = fingerprints(arrays)
    assert of_arrays[0] == of_arrays[1] != of_arrays[2] and of_arrays[0] != fingerprints(arrays.reshape(3, 3, 2))[0]
    with pytest.raises(ValueError, match=r"gone\.png cannot be read"):
        fingerprints([tmp_path / "gone.png"])


def test_training_and_validation_part_and_nothing_else(tmp_path):
    train, validation, test = records("ab", 1), records("c", 2), records("de", 3)
    known = TrainedOn.of(Source("s", train, test), validation)
    assert (known.data, known.train_images, known.train_classes, known.classes) == ("s", 2, 2, ["a", "b", "c"])
    assert not known.overlap(Source("s", train, test))
    for part, said in ((train, "2 of 2 tested classes"), (validation, "1 of 1 tested classes")):
        assert said in known.overlap(Source("t", records("x", 9), part))
    # Images under another name, in the gallery alone.
    hidden = Records(validation.images, np.array([0]), ("y",))
    query = records("y", 7)
    assert known.overlap(Source("t", records("x", 9), query, gallery=hidden)) == "1 of 2 tested images were trained on"
    assert known.overlap(Source("t", records("x", 9), records(["p/a", "q/f"], 5))).startswith("1 of 2 tested classes")


def test_what_a_checkpoint_brings_is_looked_at(tmp_path):
    known = TrainedOn.of(Source("s", records("ab", 1), records("de", 3)), None)
    torch.save(known._asdict(), tmp_path / "known")
    read = TrainedOn.read(torch.load(tmp_path / "known", weights_only=True))
    assert read is not None and read.images.equal(known.images) and read[:4] == known[:4]
    for wrong in (None, 3, {}, {**known._asdict(), "images": [1]}, {**known._asdict(), "classes": "ab"}):
        assert TrainedOn.read(wrong) is None
