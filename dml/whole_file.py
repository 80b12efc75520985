"""Files and folders that are there whole or not at all, however the process that writes them ends."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written under another name; once it has reached the disk it gets its own.

    Raises:
        OSError: it cannot be written, and names it; what was there before is there still, as after any other error.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a `whole_file` at once.

    Raises:
        OSError: as there.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled under another name, which gets its own once all of it has reached the disk.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, "is there already: remove it, or give another folder", str(path))
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        os.rename(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
