"""Folders that dml writes, which may stand below the folder of a user's images: they are never read as images.

What can be made again, the cache and unpacked images, has a file CACHEDIR.TAG (https://bford.info/cachedir), which
programs that make backups know as well. Runs must be in a backup: they are known by the files that Hydra writes.
"""

from collections.abc import Collection
from pathlib import Path

from PIL import Image

TAG = "CACHEDIR.TAG"
_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_TEXT = b"\n# dml made this folder, and makes it again if you remove it. It is not read as images.\n"
IN_CACHE = frozenset({".pixels", ".broken", ".npy"})  # extensions of what data.cache_dir holds


def make_tagged(folder: Path) -> None:
    """Make a folder, or take the one that is there, and tag it unless it holds images or folders of somebody else.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_tag(folder) and not any(map(_of_others, folder.iterdir())):
        (folder / TAG).write_bytes(_SIGNATURE + _TEXT)


def kind_of_own(folder: Path, names: Collection[str]) -> str | None:
    """What folder it is, in words, if nothing below it is an image of the user; None: it may hold some.

    Args:
        folder: any.
        names: of all that is in it.
    """
    if TAG in names and _has_tag(folder):
        return f"caches (folders with {TAG})"
    if ".hydra" in names or "multirun.yaml" in names:
        return "folders of runs and sweeps (with .hydra or multirun.yaml)"
    return None


def _has_tag(folder: Path) -> bool:
    try:
        with (folder / TAG).open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError:
        return False


def _of_others(entry: Path) -> bool:
    """Whether it is an image, or a folder that `dml.data.listed.unpacked` did not write (it has a lock beside it)."""
    if entry.is_dir():
        return entry.suffix != ".part" and not entry.with_suffix(".lock").exists()
    return entry.suffix.lower() in Image.registered_extensions()
