"""Folders that are the two sides of a split, and not groups of classes: known by their names."""

import os
import re
from pathlib import Path

from dml.data.tree import Parts, Tree

# Folders right below the root that are read as sides, if there is one to train and one to test.
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "query", "val", "valid", "validation")  # the first that is there is tested
_GALLERY = ("gallery",)
# Words in the names of folders that are no side by their whole name, or stand deeper.
_LIKE_TRAIN = re.compile(r"(?<![a-z])train(ing|set)?(?![a-z])")
_LIKE_TEST = re.compile(
    r"(?<![a-z])((test|val)(ing|set)?|valid(ation)?|dev|eval(uation)?|holdout|query)(?![a-z])"
)  # fmt: skip


def sides_of(tree: Tree, depth: int | None) -> list[Tree] | None:
    """[train, test] or [train, test, gallery] of a tree that has such folders, train perhaps empty; None: it has not.

    Args:
        tree: the folders that hold images.
        depth: how many folders below the root, or below that of its side, a class folder stands.

    Raises:
        ValueError: folders look like sides, but cannot be read as those.
    """
    top: dict[str, str] = {}
    for name in sorted({parts[0] for parts in (*tree.folders, *tree.again) if parts}):
        if (other := top.setdefault(name.lower(), name)) != name and name.lower() in (*_TRAIN, *_TEST, *_GALLERY):
            raise ValueError(f"{tree.key}={tree.root} holds both {other} and {name}: put them together, or rename one")
    found = {kind: [top[name] for name in kind if name in top] for kind in (_TRAIN, _TEST, _GALLERY)}
    train, test, gallery = (next(iter(names), None) for names in found.values())
    if gallery and "query" in top:
        test = top["query"]
    if test is None or (train is None and not (gallery and test.lower() == "query")):
        return None
    used = [name for name in (train, test, gallery) if name is not None]
    flat = [name for name in used if (name,) in tree.folders]
    others = [name for name in top.values() if name not in used and not _looks_like_side(name)]
    if flat == used and (depth == 1 or (len(others) >= len(used) and all((name,) in tree.folders for name in others))):
        return None  # said to be classes, or classes among others: trains, and cars and ships
    for name in flat[:1]:
        raise ValueError(
            f"{tree.key}={tree.root}: {' and '.join(used)} look like the sides of a split, but {name} holds the "
            f"image {tree.folders[name,][0].name} and no class folder: put the images of each class into a folder, "
            + (
                "or give data.class_depth=1 if these folders are classes"
                if flat == used
                else "or give the sides that have class folders: data.train_root=DIR data.test_root=DIR"
            )
        )
    if len(found[_TRAIN]) > 1:
        raise ValueError(f"{tree.key}={tree.root} holds {' and '.join(found[_TRAIN])}: which of them trains?")
    for name in sorted(set(top.values()) - set(used)):
        if name.lower() not in (*_TRAIN, *_TEST):
            raise ValueError(
                f"{tree.key}={tree.root} holds {' and '.join(used)}, the sides of a split, and also {name}: give "
                f"data.train_root=DIR and data.test_root=DIR, or take {name} elsewhere"
            )
        if images := sum(len(images) for parts, images in tree.folders.items() if parts[0] == name):
            tree.passed_over[f"images of the side {name}/"] += images
    if gallery is not None and test.lower() != "query":
        raise ValueError(f"{tree.key}={tree.root} holds {test} and gallery: the queries of a gallery are called query")
    _check_links(tree, used, train)
    empty = Tree(tree.root, tree.key, {})
    return [tree.below(name) if name is not None else empty for name in (train, *used[train is not None :])]


def _check_links(tree: Tree, used: list[str], train: str | None) -> None:
    """Refuse a side that is to hold by links what is read as part of another, or what is to train and be searched."""
    for parts in sorted(tree.again):
        side, link = Path(os.path.realpath(tree.root / parts[0])), tree.root.joinpath(*parts)
        to = Path(os.path.realpath(link))
        within = len(parts) > 1 and (to.is_relative_to(side) or side.is_relative_to(to))  # or a loop
        if parts[0] in used and not within:
            raise ValueError(f"{tree.key}: {link} is a link to {to}, which is on another side already: remove one")
    for (in_gallery, place), path in sorted(tree.places.items()):
        other = tree.places.get((False, place))
        if train is not None and in_gallery and other is not None and other.is_relative_to(tree.root / train):
            raise ValueError(f"{tree.key}: {other} and {path} are one image, linked: it cannot train and be searched")


def check_no_sides(tree: Tree) -> None:
    """Refuse folders of class folders, side by side, whose names say train and test: they would be split by name.

    Raises:
        ValueError: there are such folders; names both, and the keys.
    """
    holders: set[Parts] = {parts[:i] for parts in tree.folders for i in range(1, len(parts))}
    for folder in sorted(holders):
        for other in sorted(holders):
            if (
                folder[:-1] == other[:-1]
                and _LIKE_TRAIN.search(_in_words(folder[-1]))
                and _LIKE_TEST.search(_in_words(other[-1]))
            ):
                train, test = tree.root.joinpath(*folder), tree.root.joinpath(*other)
                depth = min(len(parts) for parts in tree.folders if parts[: len(folder)] == folder)
                raise ValueError(
                    f"{tree.key}={tree.root} holds {'/'.join(folder)} and {'/'.join(other)}, which look like the sides "
                    f"of a split: give data.train_root={train} data.test_root={test}, or data.class_depth={depth} if "
                    "they are groups of classes"
                )


def _looks_like_side(name: str) -> bool:
    return bool(_LIKE_TRAIN.search(_in_words(name)) or _LIKE_TEST.search(_in_words(name)))


def _in_words(name: str) -> str:
    """TrainImages -> train images."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
