"""Memory of a training on a CPU: what large tensors free is kept for the next ones.

glibc gives the memory of every large tensor back to the kernel and asks for it anew, and the kernel clears each page
again: up to a third of a step. Training asks for the same sizes at every step, so keeping the pages costs little.
"""

import ctypes
import sys
from typing import Any

# mallopt's parameters (malloc.h), and the values that glibc's own thresholds grow to. Once one of them is set they do
# not move any more.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


def keep_freed_memory() -> bool:
    """From here on, freed memory stays with this process; returns False where there is no glibc to tell so.

    The process keeps as much as it has needed at its peak. `return_freed_memory` ends this.
    """
    libc = _glibc()
    if libc is None:
        return False
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> None:
    """Give kept memory back to the system; large tensors get theirs from it again."""
    libc = _glibc()
    if libc is not None:
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def _glibc() -> Any | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "malloc_trim") else None
