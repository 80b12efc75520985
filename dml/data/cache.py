"""Images decoded and resized once, in one file of pixels that all processes map into their memory."""

import atexit
import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dml.data import decode as decoding
from dml.data.dataset import ImageDataset
from dml.data.decode import Box, Decode
from dml.data.own_folders import make_tagged
from dml.locks import lock
from dml.whole_file import whole_file
from dml.words import counted

Entry = tuple[Path, Box | None]  # an image, and what it is cut to
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
_SHARED_MEMORY = Path("/dev/shm")


class Cache:
    """Reads as `decode` does: image and box, or None -> uint8 tensor [3, h, w], which is not to be written to.

    Args:
        file: the pixels [h, w, 3] of all images one after another, then (offset, h, w) of each as int64.
        entries: what it holds, in this order.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def __init__(self, file: Path, entries: Sequence[Entry]) -> None:
        self.file, self.entries = file, entries
        content = np.memmap(file, dtype=np.uint8, mode="r")
        table = content[len(content) - 24 * len(entries) :].view("<i8").reshape(-1, 3)
        self._places = dict(zip(entries, table.tolist(), strict=True))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._content = torch.from_numpy(content)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, (self.file, self.entries)  # worker processes that are not forked map the file again

    def __call__(self, image: Path | np.ndarray, box: Box | None = None) -> Tensor:
        """The pixels of an entry."""
        assert isinstance(image, Path)
        offset, height, width = self._places[image, box]
        return self._content[offset : offset + 3 * height * width].view(height, width, 3).movedim(2, 0)


def cache_images(
    datasets: Sequence[ImageDataset],
    decode: Decode,
    *,
    place: str,
    folder: str,
    name: str,
    workers: int,
    progress: bool,
) -> None:
    """Have data sets read decoded images from a cache of them all, built where there is none; arrays stay as they are.

    The cache is found again by its images' paths, sizes, modification times and boxes, in whichever of the data sets
    they are, and by how they are decoded: other folds, seeds and losses share it, and after a change of any of these
    another one is built beside it. It appears whole or not at all; of several processes one builds it.

    Args:
        datasets: all of a source, so that each split of it has the same cache.
        decode: what they share.
        place: disk, or ram: in shared memory, as long as a process uses it.
        folder: for disk.
        name: of the source, for the file's name.
        workers: processes that decode.
        progress: show a bar.

    Raises:
        ValueError: an image cannot be read, or the cache cannot be written; names the file or the config key.
    """
    given = (dataset.to_decode(i) for dataset in datasets for i in range(len(dataset)))
    entries = sorted(
        {(image, box) for image, box in given if isinstance(image, Path)}, key=lambda e: (e[0], e[1] or ())
    )
    if not entries:
        return
    if place == "ram" and not _SHARED_MEMORY.is_dir():
        raise ValueError(f"data.cache=ram needs {_SHARED_MEMORY}, which this system has not: use data.cache=disk")
    where = _SHARED_MEMORY / f"dml-{os.getuid()}" if place == "ram" else Path(folder).expanduser()
    key = "data.cache=ram" if place == "ram" else f"data.cache_dir={folder}"
    file = where / f"{name[:50]}-{fingerprint(entries, decode)}.pixels"
    try:
        try:
            cache = _open(file, entries, place)
        except FileNotFoundError:
            make_tagged(where)
            with alone(where):
                if not file.exists():
                    _remove_leftovers(where, place)
                    _build(file, entries, decode, key, workers, progress)
                cache = _open(file, entries, place)
    except OSError as error:
        full = _more_room(file) if error.errno == errno.ENOSPC else ""
        raise ValueError(f"{key}: {file} cannot be read or written ({error}){full}") from error
    for dataset in datasets:
        if not isinstance(dataset.records.images, np.ndarray):
            dataset.decode = cache


def fingerprint(entries: Sequence[Entry], decode: Decode) -> str:
    """Of the entries' paths, sizes, modification times and boxes, and of what decodes: Pillow, and our own code.

    Raises:
        ValueError: an image is not there; names it.
    """
    digest = hashlib.sha256(f"{PIL.__version__} {decode}".encode() + Path(decoding.__file__).read_bytes())
    for path, box in entries:
        try:
            stat = path.stat()
        except OSError as error:
            raise ValueError(f"the image {path} cannot be read: {error}") from error
        digest.update(os.fsencode(os.path.abspath(path)) + f"\0{stat.st_size} {stat.st_mtime_ns} {box}\0".encode())
    return digest.hexdigest()[:16]


class _Decoded(Dataset[np.ndarray]):
    def __init__(self, entries: Sequence[Entry], decode: Decode) -> None:
        self.entries, self.decode = entries, decode

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.decode(*self.entries[index]).movedim(0, 2).numpy()


def as_it_is(item: Any) -> Any:
    """What a loader does with an item that is none of a batch: nothing."""
    return item


def _build(file: Path, entries: Sequence[Entry], decode: Decode, key: str, workers: int, progress: bool) -> None:
    """Write the pixels of all entries into the file."""
    images = _Decoded(entries, decode)
    some = range(0, len(entries), -(-len(entries) // 64))
    expected = int(len(entries) * sum(images[i].nbytes for i in some) / len(some))
    size = "" if decode.resize is not None else " at full size, as transform.train_crop=random_resized needs them"
    print(f"Caching {counted(len(entries), 'image')}{size}, about {expected / 1e9:.2f} GB: {file}", flush=True)
    if (free := shutil.disk_usage(file.parent).free) < 1.05 * expected:
        raise ValueError(
            f"{key} has not the room: {counted(len(entries), 'image')} of about {expected / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free{_more_room(file)}"
        )
    # Processes, as threads wait for each other; a generator of its own, as the run's must not notice whether it builds.
    loader = DataLoader(images, batch_size=None, num_workers=workers, collate_fn=as_it_is, generator=torch.Generator())
    table, offset = np.empty((len(entries), 3), dtype="<i8"), 0
    with whole_file(file) as out, Progress(*COLUMNS, disable=not progress) as bar:
        task = bar.add_task("Caching images", total=len(entries))
        for i, pixels in enumerate(loader):
            table[i] = offset, *pixels.shape[:2]
            offset += out.write(pixels.data)
            bar.advance(task)
        out.write(table.data)


def _more_room(file: Path) -> str:
    """What helps where shared memory is full."""
    if _SHARED_MEMORY not in file.parents:
        return ""
    return ": give a container more of it (--shm-size=8g of docker and podman), or take data.cache=disk"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time builds in a folder; the system lets go of it however the process ends."""
    with (folder / ".lock").open("w") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            print(f"Waiting for another process that builds a cache in {folder}", flush=True)
            lock(file)
        yield


_in_use: dict[Path, int] = {}  # file in shared memory -> descriptor whose shared lock says that this process uses it


def _open(file: Path, entries: Sequence[Entry], place: str) -> Cache:
    if place == "ram" and file not in _in_use:
        descriptor = os.open(file, os.O_RDONLY)
        lock(descriptor, shared=True)
        if not os.fstat(descriptor).st_nlink:  # its last user removed it in between
            os.close(descriptor)
            raise FileNotFoundError(file)
        _in_use[file] = descriptor
        atexit.register(_remove_unused, file, descriptor)
    return Cache(file, entries)


def _remove_unused(file: Path, descriptor: int) -> None:
    with suppress(BlockingIOError, FileNotFoundError):
        lock(descriptor, wait=False)
        file.unlink()


def _remove_leftovers(folder: Path, place: str) -> None:
    """Remove what processes that were killed have left: half caches, and in shared memory those nobody uses."""
    for part in folder.glob("*.part"):
        part.unlink()
    for file in folder.glob("*.pixels") if place == "ram" else ():
        if file not in _in_use:
            descriptor = os.open(file, os.O_RDONLY)
            _remove_unused(file, descriptor)
            os.close(descriptor)
