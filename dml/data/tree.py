"""The folders below a root that hold images: links followed, what is no image passed over and counted."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from PIL.ImageFile import StubImageFile

from dml.data.own_folders import IN_CACHE, kind_of_own

# Folders that systems and programs leave beside people's files, in lower case.
_OF_THE_SYSTEM = frozenset(
    {"@eadir", "@tmp", "#recycle", "__macosx", "lost+found", "$recycle.bin", "system volume information", "__pycache__"}
)
# Folders of class folders' companions, in lower case, which may do without images.
_BESIDE_IMAGES = frozenset({"annotation", "annotations", "label", "labels", "metadata", "docs", "lists", "splits"})
# Formats that Pillow tells from others but cannot decode by itself: films, and what it hands to other programs.
_NOT_DECODED = frozenset({"MPEG", "EPS", "IPTC"})
HIDDEN = "hidden (names that begin with a dot)"
TWICE = "links to folders that are read elsewhere"

Parts = tuple[str, ...]  # of a folder's path below the root


@dataclass(frozen=True)
class Tree:
    """The folders that hold images.

    Attributes:
        root: what their paths are below.
        key: config key that names it.
        folders: path below the root -> its images, sorted by name; in no order.
        passed_over: extension, or another word for the kind -> how many were passed over.
        again: links to folders that were not followed, as these are read elsewhere.
        places: (in a folder gallery or not, where an image really is) -> the path by which it was found.
    """

    root: Path
    key: str
    folders: dict[Parts, list[Path]]
    passed_over: Counter[str] = field(default_factory=Counter)
    again: list[Parts] = field(default_factory=list)
    places: dict[tuple[bool, str], Path] = field(default_factory=dict)

    def below(self, name: str) -> "Tree":
        """The part below one of the root's own folders."""
        inner = {parts[1:]: images for parts, images in self.folders.items() if parts[:1] == (name,)}
        return Tree(self.root / name, self.key, inner)


def readable() -> dict[str, str]:
    """Extension -> format of all that the installed Pillow decodes, plugins that were registered included."""
    Image.init()
    formats = {name for name in Image.OPEN if name not in _NOT_DECODED and not _is_stub(name)}
    return {end: name for end, name in Image.registered_extensions().items() if name in formats}


def _is_stub(name: str) -> bool:
    call = Image.OPEN[name][0]
    return isinstance(call, type) and issubclass(call, StubImageFile)


def read_folders(root: str | Path, key: str) -> Tree:
    """Find all images below `root`.

    An image is a file whose extension the installed Pillow reads, or one without extension whose content it
    recognises. Links to folders and images are followed; a folder that is reached twice is read once, and counted. A
    gallery beside other folders may hold again what they hold: its queries. Folders that dml writes are passed over.

    Args:
        root: the folder.
        key: config key to name in errors.

    Raises:
        ValueError: the root or a folder in it cannot be read or holds no image, an image link leads nowhere, or one
            image is reached by two names.
    """
    if not str(root):  # it would be the current folder
        raise ValueError(f"{key}= is empty: give a folder")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise ValueError(f"{key}={base} is not a folder")
    tree = Tree(base, key, {})
    ends = readable()
    known = {(gallery, os.path.realpath(base)) for gallery in (False, True)}
    real: list[Parts] = [()]
    links: list[Parts] = []
    while real or links:
        # Links come last: what is also there as a folder of its own keeps that name.
        parts = real.pop() if real else links.pop(0)
        folder = base.joinpath(*parts)
        where, gallery = os.path.realpath(folder), parts[:1] != () and parts[0].lower() == "gallery"
        if parts and (gallery, where) in known:
            tree.passed_over[TWICE] += 1
            tree.again.append(parts)
            continue
        known.add((gallery, where))
        entries = _entries(folder, key)
        if parts and (kind := kind_of_own(folder, {entry.name for entry in entries})):
            tree.passed_over[kind] += 1
            continue
        images, holds_folders, others = [], False, Counter[str]()
        for entry in entries:
            name, end = entry.name, os.path.splitext(entry.name)[1].lower()
            leads_nowhere = entry.is_symlink() and not os.path.exists(entry.path)
            if name.startswith("."):
                tree.passed_over[HIDDEN] += 1
            elif not leads_nowhere and entry.is_dir():
                if name.lower() in _OF_THE_SYSTEM:
                    tree.passed_over[f"{name}/"] += 1
                    continue
                holds_folders = True
                (links if entry.is_symlink() else real).append((*parts, name))
            elif leads_nowhere and (not end or end in ends):
                to = os.readlink(entry.path)
                raise ValueError(f"{key}: the link {entry.path} leads nowhere ({to} is missing): mend or remove it")
            elif (
                not leads_nowhere
                and entry.is_file()
                and (end in ends or (not end and _looks_like_image(entry.path, ends)))
            ):
                path = folder / name
                place = os.path.realpath(path) if entry.is_symlink() else os.path.join(where, name)
                if (other := tree.places.setdefault((gallery, place), path)) != path:
                    raise ValueError(f"{key}: {other} and {path} are one image, linked: remove one of them")
                images.append(path)
            else:
                others[end or "no extension"] += 1
        tree.passed_over.update(others)
        if images:
            tree.folders[parts] = sorted(images)
        elif not holds_folders and parts:
            beside = next((part for part in parts if part.lower() in _BESIDE_IMAGES), None)
            if not (beside and others):
                way = "remove it or fill it"
                if others.keys() & IN_CACHE:
                    way += ". If it is data.cache_dir of an earlier dml, remove it: it is made again, and then left out"
                raise ValueError(f"{key}: the class folder {folder} holds no image{said(others, ', but ')}: {way}")
            tree.passed_over[f"{beside}/ (folders without images)"] += 1
    if not tree.folders:
        known_ends = ", ".join(sorted(ends))
        raise ValueError(f"{key}={base} holds no image ({known_ends}){said(tree.passed_over, ', but ')}")
    return tree


def _entries(folder: Path, key: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{key}: the folder {folder} cannot be read: {error.strerror}") from error


def _looks_like_image(path: str, ends: dict[str, str]) -> bool:
    # Formats without a mark of their own would recognise anything.
    formats = sorted({name for name in ends.values() if Image.OPEN[name][1] is not None})
    try:
        with Image.open(path, formats=formats):
            return True
    except Exception:  # whatever a reader meets in a file that is none of its own
        return False


def said(passed_over: Counter[str], before: str = "") -> str:
    """What was passed over, in words: `12 .txt, 1 .csv`; empty if nothing was."""
    return before * bool(passed_over) + ", ".join(f"{count} {kind}" for kind, count in passed_over.most_common())
