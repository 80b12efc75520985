"""Which of the folders with images are classes, and when a tree does not say so."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

from dml.data.sides import check_no_sides
from dml.data.tree import Parts, Tree
from dml.words import counted

_OMNIGLOT = re.compile(r"character\d+")


def by_name(parts: Parts) -> tuple[str, Parts]:
    """Sorts paths as text, and parts that are numbers as numbers: 1, 2, 10."""
    return "/".join(part.zfill(20) if part.isdecimal() else part for part in parts), parts


def classes_of(tree: Tree, depth: int | None) -> dict[Parts, list[Path]]:
    """Class folder -> its images, in the order of names.

    Args:
        tree: the folders that hold images.
        depth: how many folders below the root a class folder stands, all images below it being the class's; None: it
            is the folder that holds the images, where that is beyond doubt.

    Raises:
        ValueError: images stand beside or above class folders, or without a depth the tree can be read in more than
            one way: folders are called like the sides of a split, folders of one name stand in several folders (views
            of a thing, or sides), or only some class folders stand together in a folder.
    """
    key, folders = tree.key, sorted(tree.folders, key=by_name)
    if depth is not None:
        classes: dict[Parts, list[Path]] = {}
        for parts in folders:
            if len(parts) < depth:
                raise ValueError(
                    f"{key}: the image {tree.folders[parts][0]} stands above the class folders, which "
                    f"data.class_depth={depth} looks for {depth} folder{'s' * (depth > 1)} below {tree.root}"
                )
            classes.setdefault(parts[:depth], []).extend(tree.folders[parts])
        return {parts: classes[parts] for parts in sorted(classes, key=by_name)}
    if folders == [()]:
        raise ValueError(f"{key}={tree.root} holds images and no class folders: put those of each class into a folder")
    above = {parts[:i]: parts for parts in reversed(folders) for i in range(len(parts))}
    for parts in folders:
        if parts in above:
            way = f", or give data.class_depth={len(parts)} if all below that folder is one class" if parts else ""
            raise ValueError(
                f"{key}: the image {tree.folders[parts][0]} stands beside the class folder "
                f"{tree.root.joinpath(*above[parts])}: move it into a class folder{way}"
            )
    check_no_sides(tree)
    names = _without_wrapping(folders)
    if any(len(inner) > 1 for folder, inner in _inside(names).items() if folder):
        _refuse_ambiguous(tree, names)
    return {parts: tree.folders[parts] for parts in folders}


def _refuse_ambiguous(tree: Tree, names: list[Parts]) -> None:
    within = Counter(parts[-1] for parts in names)
    repeated = sorted(name for name, count in within.items() if count > 1)
    lengths = {len(parts) for parts in names}
    if is_omniglot(names) or not (repeated or len(lengths) > 1):
        return
    if repeated:
        some = ", ".join(repr(name) for name in repeated[:3]) + ", ..." * (len(repeated) > 3)
        why = f"folders of one name stand in several folders ({some}; the first: {'/'.join(names[0])})"
    else:
        why = f"some folders with images stand {min(lengths)} below it, others {max(lengths)}"
    choices = []
    for depth in range(1, min(lengths) + 1):
        classes = sorted({parts[:depth] for parts in names}, key=by_name)
        choices.append(
            f"data.class_depth={depth} makes {counted(len(classes), 'class')} (the first: {'/'.join(classes[0])})"
        )
    raise ValueError(
        f"{tree.key}={tree.root} can be read in more than one way, as {why}: {'; '.join(choices)}; if they are the "
        "sides of a split give data.train_root=DIR data.test_root=DIR"
    )


def is_omniglot(names: list[Parts]) -> bool:
    """Whether these are Omniglot's ALPHABET/characterNN, whose numbers begin again in each alphabet."""
    return all(len(parts) > 1 and _OMNIGLOT.fullmatch(parts[-1]) for parts in names)


def _inside(names: list[Parts]) -> dict[Parts, list[Parts]]:
    found: dict[Parts, list[Parts]] = {}
    for parts in names:
        found.setdefault(parts[:-1], []).append(parts)
    return found


def _without_wrapping(names: list[Parts]) -> list[Parts]:
    """Class paths without last parts that tell nothing, as they are the same everywhere: CLASS/images."""
    while len(names) > 1 and len({parts[-1] for parts in names}) == 1:
        shorter = [parts[:-1] for parts in names]
        if not all(shorter) or len(set(shorter)) < len(names):
            break
        names = shorter
    return names


def identities(*trees: list[Parts]) -> list[list[str]]:
    """What tells classes apart across trees: their folders' names, or their paths where one tree has a name twice."""
    # macOS writes an umlaut as two characters, other systems as one.
    names = [
        [tuple(unicodedata.normalize("NFC", part) for part in parts) for parts in _without_wrapping(classes)]
        for classes in trees
    ]
    if all(len({parts[-1] for parts in tree}) == len(tree) for tree in names):
        return [[parts[-1] for parts in tree] for tree in names]
    return [["/".join(parts) for parts in tree] for tree in names]


def wholes(classes: list[Parts]) -> list[str]:
    """What no split may cut: for each class the topmost folder that it shares with others, or its own.

    Omniglot's alphabets are cut, as the field does; its characters are told apart by their path.
    """
    names = _without_wrapping(classes)
    if is_omniglot(names):
        return ["/".join(parts) for parts in names]
    shared = 0
    while len({parts[: shared + 1] for parts in names}) == 1 and shared + 1 < min(map(len, names)):
        shared += 1
    return [parts[shared] for parts in names]
