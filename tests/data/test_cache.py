"""The cache gives what decoding gives, is shared, is never stale and never half."""

import atexit
import errno
import multiprocessing
import os
import pickle
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dml.data.cache import Cache, cache_images
from dml.data.dataset import ImageDataset, Records, Source
from dml.data.decode import Decode
from dml.data.transforms import Transforms

SHAPES = [(40, 30), (30, 40), (14, 90), (16, 16), (3, 3), (200, 150), (9, 1), (31, 17)]


def write(path, width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def records(tmp_path):
    """16 JPEGs and PNGs of many shapes, some smaller than a crop, of 4 classes, with boxes."""
    (tmp_path / "images").mkdir()
    paths = [write(tmp_path / "images" / f"{i}.{'jpg' if i % 3 else 'png'}", *SHAPES[i % 8], seed=i) for i in range(16)]
    boxes = np.array([[0, 0, max(1, w // 2), h] for w, h in SHAPES * 2], dtype=float)
    return Records(paths, np.arange(16) % 4, tuple("abcd"), boxes)


def datasets(transforms, *parts):
    """A data set for training and one to test, of each part."""
    given = {"decode": transforms.decode, "crop_to_box": transforms.crop_to_box}
    return [ImageDataset(part, way, **given) for part in parts for way in (transforms.train, transforms.test)]


def build(sets, folder, **given):
    """Put a cache before data sets; returns its file."""
    settings = {"place": "disk", "folder": str(folder), "name": "made", "workers": 0, "progress": False}
    cache_images(sets, sets[0].decode, **{**settings, **given})
    return sets[0].decode.file


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({}, 0),
        ({}, 2),
        ({"resize_side": "shorter", "fill": 9}, 0),
        ({"resize_side": "both", "train_crop": "center", "flip": False}, 0),
        ({"train_crop": "random_resized"}, 0),
        ({"degrees": 20.0, "translate": 0.2, "scale": 0.3}, 0),
        ({"crop_to_box": True}, 2),
        ({"ten_crop": True}, 0),
    ],
    ids=str,
)
def test_bit_for_bit_as_without(records, tmp_path, options, workers):
    transforms = Transforms(**{"size": 16, "resize": 20, **options})
    plain, cached = datasets(transforms, records), datasets(transforms, records)
    build(cached, tmp_path, workers=workers)
    assert all(isinstance(dataset.decode, Cache) for dataset in cached)
    for expected, found in zip(plain, cached, strict=True):
        items = [[(index, 7 * index + seed) for index in range(16)] for seed in range(3)]
        if found.transform == transforms.test:
            items = [list(range(16))]
        loader = DataLoader(found, batch_sampler=items, num_workers=workers)
        for batch, (images, labels, indices) in zip(items, loader, strict=True):
            assert torch.equal(images, torch.stack([expected[item][0] for item in batch]))
            assert labels.tolist() == records.labels.tolist() and indices.tolist() == list(range(16))


TRANSFORMS = Transforms(size=16, resize=20)


def test_folds_and_protocols_share_one(records, tmp_path, capsys):
    first = np.arange(16) < 8
    images = [path for path, chosen in zip(records.images, first, strict=True) if not chosen]
    test = Records(images, np.arange(8) % 2, ("x", "y"))
    source = Source("made", records.subset(np.flatnonzero(first)), test)
    splits = [(source.train, test)]
    for fold in range(2):
        rest, validation = source.hold_out(0.5, fold, 2)
        splits.append((rest.train, validation, test))
    files = {build(datasets(TRANSFORMS, *parts), tmp_path / "cache") for parts in splits}
    assert len(files) == 1 and capsys.readouterr().out.count("Caching 16 images") == 1


def test_whatever_changes_pixels_makes_another(records, tmp_path, capsys):
    def built(transforms=TRANSFORMS, of=records):
        build(datasets(transforms, of), tmp_path / "cache")
        return "Caching" in capsys.readouterr().out

    assert built() and not built()
    assert not built(Transforms(size=8, resize=20, flip=False))  # comes after what is kept
    for transforms in (
        Transforms(size=16, resize=21),
        Transforms(size=16, resize=20, fill=3),  # transparent pixels show it
        Transforms(size=16, resize=20, white=255),
        Transforms(size=16, resize=20, resize_side="both"),
        Transforms(size=16, resize=20, train_crop="random_resized"),
        Transforms(size=16, resize=20, crop_to_box=True),
    ):
        assert built(transforms) and not built(transforms)
    boxes = records.boxes + np.array([0, 0, 1, 0])
    assert built(transforms, Records(records.images, records.labels, records.class_names, boxes))
    os.utime(records.images[3], (1, 1))
    assert built() and not built()
    write(records.images[0], 50, 50)
    assert built()
    (plain,), (cached,) = datasets(TRANSFORMS, records)[1:], datasets(TRANSFORMS, records)[1:]
    build([cached], tmp_path / "cache")
    assert torch.equal(cached[0][0], plain[0][0])
    assert built(of=records.subset(np.arange(15))) and not built()


def test_the_run_does_not_notice_whether_it_was_built(records, tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for workers in (0, 1):
        build(datasets(TRANSFORMS, records), tmp_path / str(workers), workers=workers)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_handed_to_other_processes_by_its_name(records, tmp_path):
    sets = datasets(TRANSFORMS, records)
    build(sets, tmp_path)
    handed = pickle.dumps(sets[0])
    assert len(handed) < 8000
    assert torch.equal(pickle.loads(handed)[5, 1][0], sets[0][5, 1][0])


def test_images_in_memory_stay_as_they_are(tmp_path):
    records = Records(np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2, ("a", "b"))
    sets = datasets(TRANSFORMS, records)
    cache_images(
        sets, TRANSFORMS.decode, place="disk", folder=str(tmp_path / "no"), name="x", workers=0, progress=False
    )
    assert sets[0].decode is TRANSFORMS.decode and not (tmp_path / "no").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_and_nothing_stays(records, tmp_path, workers):
    records.images[5].write_bytes(records.images[5].read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the image {records.images[5]} cannot be read"):
        build(datasets(TRANSFORMS, records), tmp_path / "cache", workers=workers)
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == [".lock", "CACHEDIR.TAG"]
    records.images[5].unlink()
    with pytest.raises(ValueError, match=f"the image {records.images[5]} cannot be read"):
        build(datasets(TRANSFORMS, records), tmp_path / "cache")


def test_a_disk_too_small_is_told_before_it_starts(records, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"data\.cache_dir=.* has not the room: 16 images of about 0\.00 GB"):
        build(datasets(TRANSFORMS, records), tmp_path / "cache")


def test_shared_memory_too_small_is_told_with_what_helps(records, tmp_path, monkeypatch):
    monkeypatch.setattr("dml.data.cache._SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"data\.cache=ram has not the room: .*--shm-size=8g .*data\.cache=disk"):
        build(datasets(TRANSFORMS, records), tmp_path / "cache", place="ram")


def test_a_disk_that_fills_up_is_told(records, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"data\.cache_dir=.* cannot be read or written \(.*No space left"):
        build(datasets(TRANSFORMS, records), tmp_path / "cache")
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == [".lock", "CACHEDIR.TAG"]


def test_a_folder_that_is_none_is_told(records, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"data\.cache_dir={tmp_path / 'file'}: .* cannot be read or written"):
        build(datasets(TRANSFORMS, records), tmp_path / "file")


@dataclass(frozen=True)
class Slow(Decode):
    """Takes a while, and counts in a file."""

    log: Path | None = None

    def __call__(self, image, box=None):
        time.sleep(0.02)
        with self.log.open("a") as log:
            log.write(".")
        return super().__call__(image, box)


def build_slowly(records, folder, place="disk"):
    """In a process of its own; 16 images are decoded to see how large they get, then all 16."""

    def run():
        sets = [ImageDataset(records, TRANSFORMS.train, decode=Slow(20, log=folder.with_suffix(".log")))]
        folder.with_suffix(".files").write_text(f"{build(sets, folder, place=place)}\n")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_while_building(records, tmp_path):
    process = build_slowly(records, tmp_path / "cache")
    until(lambda: list((tmp_path / "cache").glob("*.part")))
    process.kill()
    process.join()
    (part,) = (tmp_path / "cache").glob("*.part")
    assert not list((tmp_path / "cache").glob("*.pixels"))
    # The next one, of whatever images, starts anew and clears up.
    sets = datasets(TRANSFORMS, records)
    build(sets, tmp_path / "cache")
    assert not part.exists() and torch.equal(sets[1][0][0], datasets(TRANSFORMS, records)[1][0][0])


def test_of_two_that_start_at_once_one_builds(records, tmp_path):
    processes = [build_slowly(records, tmp_path / "cache") for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "cache.log").read_text()) == 32
    assert sorted(file.suffix for file in (tmp_path / "cache").iterdir()) == ["", ".TAG", ".pixels"]


needs_shared_memory = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")


@needs_shared_memory
def test_shared_memory_that_a_killed_process_left_is_freed_by_the_next_build(records, tmp_path):
    process = build_slowly(records, tmp_path / "no", "ram")
    process.join()  # as if killed: a forked process does nothing at its end
    (left,) = (Path(line) for line in (tmp_path / "no.files").read_text().splitlines())
    assert left.is_file() and left.is_relative_to("/dev/shm")
    sets = datasets(TRANSFORMS, records)
    file = build(sets, tmp_path / "no", place="ram")
    assert file.is_file() and not left.exists() and not (tmp_path / "no").exists()
    assert torch.equal(sets[0][3, 3][0], datasets(TRANSFORMS, records)[0][3, 3][0])


@needs_shared_memory
def test_shared_memory_is_used_by_all_and_freed_by_the_last(records):
    fork = multiprocessing.get_context("fork")
    files, ends = fork.Queue(), [fork.Event() for _ in range(2)]

    def run(end):
        atexit._clear()  # what this process will have to do at its end, not that of the tests
        sets = datasets(TRANSFORMS, records)
        files.put((build(sets, "nowhere", place="ram"), sum(int(image.sum()) for image, *_ in sets[1])))
        end.wait()
        atexit._run_exitfuncs()

    processes = [fork.Process(target=run, args=(end,)) for end in ends]
    for process in processes:
        process.start()
    said = [files.get(timeout=30) for _ in processes]
    file = said[0][0]
    assert said[0] == said[1] and file.is_relative_to("/dev/shm")
    for process, end, stays in zip(processes, ends, (True, False), strict=True):
        assert file.is_file()
        end.set()
        process.join()
        assert file.exists() == stays and process.exitcode == 0
