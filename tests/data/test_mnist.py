"""MNIST from a miniature in the official format. torchvision trusts unpacked files, and packed ones by their MD5."""

import gzip
import hashlib
import struct
import urllib.error

import numpy as np
import pytest
from torchvision.datasets import MNIST

from dml.data import mnist

SIZES = {"train": 60, "t10k": 20}


def idx(array):
    """The IDX format: magic number with type (8: uint8) and dimensions, big-endian sizes, data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def miniature():
    rng = np.random.default_rng(0)
    files = {}
    for part, n in SIZES.items():
        files[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        files[f"{part}-labels-idx1-ubyte"] = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    return files


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def urlopen(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


def write(miniature, root, packed=False):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in miniature.items():
        if packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (raw / name).write_bytes(idx(array))
    return raw


def assert_is_miniature(source, miniature):
    assert np.array_equal(source.train.images, miniature["train-images-idx3-ubyte"])
    assert np.array_equal(source.train.labels, miniature["train-labels-idx1-ubyte"])
    assert np.array_equal(source.test.images, miniature["t10k-images-idx3-ubyte"])
    assert np.array_equal(source.test.labels, miniature["t10k-labels-idx1-ubyte"])


def test_unpacked_files_are_read(miniature, tmp_path):
    write(miniature, tmp_path)
    source = mnist.load(root=str(tmp_path), test_images=None)
    assert_is_miniature(source, miniature)
    assert source.train.images.dtype == np.uint8 and source.train.labels.dtype == np.int64
    assert source.train.class_names == source.test.class_names == tuple("0123456789")
    assert source.name == "mnist" and not source.class_disjoint and source.gallery is None


def test_packed_files_are_read_where_the_message_says_to_put_them(miniature, tmp_path, monkeypatch):
    raw = write(miniature, tmp_path, packed=True)
    # The real files' sums are torchvision's; the miniature has its own.
    sums = [(name, hashlib.md5((raw / name).read_bytes()).hexdigest()) for name, _ in MNIST.resources]
    monkeypatch.setattr(MNIST, "resources", sums)
    assert_is_miniature(mnist.load(root=str(tmp_path), test_images=None), miniature)


def test_part_of_the_test_set(miniature, tmp_path):
    write(miniature, tmp_path)

    def test_set(**options):
        return mnist.load(root=str(tmp_path), test_images=12, **options).test

    chosen = test_set()
    assert len(chosen) == 12
    images, labels = miniature["t10k-images-idx3-ubyte"], miniature["t10k-labels-idx1-ubyte"]
    places = [int(np.flatnonzero((images == image).all(axis=(1, 2)))[0]) for image in chosen.images]
    assert len(set(places)) == 12
    # Some classes may be left out of a part this small: labels are renumbered, names are not.
    assert [chosen.class_names[label] for label in chosen.labels] == [str(label) for label in labels[places]]
    np.random.seed(5)
    assert np.array_equal(test_set().images, chosen.images)
    assert not np.array_equal(test_set(split_seed=1).images, chosen.images)


@pytest.mark.parametrize("number", [0, -1, 21])
def test_impossible_numbers_of_test_images_are_refused(miniature, tmp_path, number):
    write(miniature, tmp_path)
    with pytest.raises(ValueError, match=rf"data\.test_images={number}\b.*\b20\b"):
        mnist.load(root=str(tmp_path), test_images=number)


def test_without_network_the_message_says_what_to_do(tmp_path):
    with pytest.raises(ValueError) as error:
        mnist.load(root=str(tmp_path / "data"))
    for part in (f"data.root={tmp_path / 'data'}", str(tmp_path / "data" / "MNIST" / "raw"), ".gz", "data=digits"):
        assert part in str(error.value)


def test_part_of_the_files_is_not_enough(miniature, tmp_path):
    raw = write(miniature, tmp_path)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"data\.root="):
        mnist.load(root=str(tmp_path))
