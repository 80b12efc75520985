"""Files that are there whole or not at all, however the process that writes them ends."""

import os
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
