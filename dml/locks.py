"""Locks on files, which the system frees however a process ends."""

from typing import IO

try:
    import fcntl
except ImportError as error:
    raise ImportError(
        "dml runs on Linux and macOS. On Windows use WSL, which is a Linux: https://learn.microsoft.com/windows/wsl"
    ) from error


def lock(file: IO[str] | int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock an open file, or its descriptor, until it is closed.

    Raises:
        BlockingIOError: another process has it, and this one does not wait.
        OSError: the file system has no locks.
    """
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
