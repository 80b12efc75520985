"""Any tree of class folders, in one tree that is split by class or in folders for the two sides."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

from dml.data.dataset import Records, Source
from dml.data.layout import by_name, classes_of, identities, wholes
from dml.data.sides import sides_of
from dml.data.trained_on import fingerprints
from dml.data.tree import Tree, read_folders
from dml.words import counted

Depth = Annotated[int, Ge(1)]


def load(
    *,
    root: str | None = None,
    train_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
    train_root: str | None = None,
    test_root: str | None = None,
    class_depth: Depth | None = None,
    min_images: Annotated[int, Ge(1)] | None = None,
) -> Source:
    """Read a tree of images and split it by class: no test class is a training class, or the source says so.

    Classes are named by their path below the root and sorted by that name, numbers as numbers. Either `root` holds all
    of them, the first `train_fraction` of which train (the field's first-half/second-half split), or `train_root` and
    `test_root` hold one side each. A split of `root` cuts no folder that holds several class folders.

    If `root` holds a folder train (or training) and one called test (testing), query, val (valid, validation), they
    are the two sides, and gallery beside query is what the queries are searched in. Of several the first in this order
    is tested, and the others are not read.

    The sides may not share some of their classes. If all test classes are training classes, the source is not
    class-disjoint and its `leak` says why. Classes are the same if their folders have one name, or one path where
    names are there twice in a tree.

    Args:
        root: the tree.
        train_fraction: share of its classes that train, in (0, 1).
        train_root: the training classes instead.
        test_root: the test classes instead.
        class_depth: how many folders below the root (that of its side) a class folder stands; all images below it are
            of the class. None: a class is the folder that holds the images, where that is beyond doubt
            (`dml.data.layout.classes_of` says when).
        min_images: classes with fewer are left out, and counted in `passed_over`; a query class counts its gallery.
            None: all classes are kept.

    Raises:
        ValueError: a folder is missing or holds no class, a tree can be read in more than one way, the sides share
            images or some of their classes, or a side would have no class.
    """
    if (train_root is None) != (test_root is None) or (root is None) == (train_root is None):
        raise ValueError("data=folder needs data.root=DIR, or both data.train_root=DIR and data.test_root=DIR")
    if train_root is not None and test_root is not None:
        a, b = Path(train_root).expanduser().resolve(), Path(test_root).expanduser().resolve()
        if a == b or a in b.parents or b in a.parents:
            raise ValueError(f"data.train_root={train_root} and data.test_root={test_root} share images")
        train, test = read_folders(train_root, "data.train_root"), read_folders(test_root, "data.test_root")
        for place in sorted(train.places.keys() & test.places.keys())[:1]:  # by links
            both = f"{train.places[place]} and {test.places[place]}"
            raise ValueError(f"data.train_root and data.test_root share images: {both} are one")
        return _of_sides(a.name, [train, test], class_depth, min_images, train.passed_over + test.passed_over)
    assert root is not None
    tree = read_folders(root, "data.root")
    name = Path(root).expanduser().resolve().name
    if (sides := sides_of(tree, class_depth)) is not None:
        return _of_sides(name, sides, class_depth, min_images, tree.passed_over)
    if not 0 < train_fraction < 1:
        raise ValueError(f"data.train_fraction={train_fraction} is not possible: it must lie between 0 and 1")
    records = _records([tree], class_depth, min_images, tree.passed_over)[0]
    first = round(train_fraction * records.num_classes)
    if not 0 < first < records.num_classes:
        raise ValueError(
            f"data.train_fraction={train_fraction} of the {counted(records.num_classes, 'class')} in data.root={root} "
            f"leaves {first} to train and {records.num_classes - first} to test: each side needs one"
        )
    # Where one whole folder ends and the next begins.
    parents = records.wholes or records.class_names
    ends = [i for i in range(1, len(parents)) if parents[i] != parents[i - 1]]
    cut = min(ends, key=lambda i: abs(i - first))
    notes = []
    if cut != first:
        notes.append(
            f"data.root={root} is split between its folders {parents[cut - 1]} and {parents[cut]}, which gives "
            f"{counted(cut, 'class')} to train and not {first}: classes of one folder stay on one side"
        )
    train_part = records.subset(np.flatnonzero(records.labels < cut))
    test_part = records.subset(np.flatnonzero(records.labels >= cut))
    return Source(name, train_part, test_part, passed_over=tree.passed_over, notes=tuple(notes))


def load_to_test(
    *,
    root: str | None = None,
    test_root: str | None = None,
    class_depth: Depth | None = None,
    min_images: Annotated[int, Ge(1)] | None = None,
) -> Source:
    """Read a tree of images of which nothing trains: all its classes are tested.

    If it has sides as `load` describes them, or query and gallery, the test side alone is read.

    Args:
        root: the tree.
        test_root: the same by another name.
        class_depth, min_images: as for `load`.

    Raises:
        ValueError: as `load` does, or none or both of the roots are given.
    """
    given = {key: value for key, value in (("root", root), ("test_root", test_root)) if value is not None}
    if len(given) != 1:
        raise ValueError("evaluation of data=folder needs data.root=DIR or data.test_root=DIR, one of them")
    ((key, folder),) = given.items()
    tree = read_folders(folder, f"data.{key}")
    sides = sides_of(tree, class_depth)
    test, *gallery = _records(sides[1:] if sides else [tree], class_depth, min_images, tree.passed_over)
    nothing = Records([], np.zeros(0, dtype=np.int64), ())
    name = Path(folder).expanduser().resolve().name
    return _with_copies_told(Source(name, nothing, test, next(iter(gallery), None), passed_over=tree.passed_over))


def read_tree(root: str | Path, key: str, class_depth: int | None = None) -> Records:
    """All images below `root`, by class folder and file name in sorted order.

    Args:
        root: the folder.
        key: config key to name in errors.
        class_depth: as for `load`.

    Raises:
        ValueError: the folder does not exist, holds no image, has a class folder without one, or can be read in more
            than one way.
    """
    return _records([read_folders(root, key)], class_depth, None, Counter())[0]


def _of_sides(
    name: str, trees: Sequence[Tree], depth: int | None, min_images: int | None, passed_over: Counter[str]
) -> Source:
    """The source of a training side, a test side and perhaps a gallery."""
    if not trees[0].folders:
        raise ValueError(
            f"{trees[0].key}={trees[0].root} holds query and gallery, and no folder train: evaluate.py can test it"
        )
    train, test, *gallery = _records(trees[:1], depth, min_images, passed_over) + _records(
        trees[1:], depth, min_images, passed_over
    )
    known, tested = identities(*([tuple(c.split("/")) for c in side.class_names] for side in (train, test)))
    common = sorted(set(tested) & set(known))
    leak = ""
    if common and len(common) < len(tested):
        raise ValueError(
            f"data: {len(common)} test classes of {name} are training classes too (the first: {common[0]}), and "
            f"{len(tested) - len(common)} are not: numbers would be neither of unseen nor of known classes. Take those "
            "classes out of one side"
        )
    if common:
        leak = f"all {len(tested)} test classes are training classes (by the names of their folders)"
    source = Source(
        name,
        train,
        test,
        next(iter(gallery), None),
        class_disjoint=not common,
        passed_over=passed_over,
        leak=leak,
    )
    return _with_copies_told(source)


def _with_copies_told(source: Source) -> Source:
    """The source with a note of queries that the gallery holds a copy of: another file of the same content."""
    if source.gallery is None:
        return source
    own = source.own_index
    assert own is not None
    others = [image for image, place in zip(source.test.images, own.tolist(), strict=True) if place < 0]
    # Files of different sizes are not read.
    of_size: dict[int, list[Path]] = {}
    for image in source.gallery.images:
        of_size.setdefault(os.path.getsize(image), []).append(image)
    some = {image: size for image in others if (size := os.path.getsize(image)) in of_size}
    there = [image for size in set(some.values()) for image in of_size[size]]
    of_content = dict(zip(fingerprints(there).tolist(), there, strict=True))
    pairs = zip(some, fingerprints(list(some)).tolist(), strict=True)
    copies = [(image, of_content[content]) for image, content in pairs if content in of_content]
    if not copies:
        return source
    note = (
        f"the gallery holds copies of {len(copies)} of {counted(len(source.test), 'query image')} (the first: "
        f"{copies[0][1]} of {copies[0][0]}), which find these first. If that is not wanted, put links in their "
        "place: a query does not find itself"
    )
    return replace(source, notes=(*source.notes, note))


def _records(
    trees: Sequence[Tree], depth: int | None, min_images: int | None, passed_over: Counter[str]
) -> list[Records]:
    """The classes of each tree; of several (queries and gallery) by the same labels and names."""
    found = [classes_of(tree, depth) for tree in trees]
    counts: Counter[tuple[str, ...]] = Counter()
    for classes in found:
        counts.update({parts: len(images) for parts, images in classes.items()})
    small = [parts for parts, count in counts.items() if count < (min_images or 1)]
    if small:
        kind = f"data.min_images={min_images}"
        passed_over[f"classes of fewer images than {kind}"] += len(small)
        passed_over[f"images in these classes ({kind})"] += sum(counts[parts] for parts in small)
    names = sorted((parts for parts in counts if counts[parts] >= (min_images or 1)), key=by_name)
    if not names:
        raise ValueError(
            f"data.min_images={min_images} leaves no class of {trees[0].key}={trees[0].root}: the largest of its "
            f"{len(counts)} has {max(counts.values())}"
        )
    number = {parts: label for label, parts in enumerate(names)}
    parents = wholes(names)
    together = tuple(parents) if len(set(parents)) < len(parents) else None
    records = []
    for classes in found:
        kept = [(number[parts], images) for parts, images in classes.items() if parts in number]
        records.append(
            Records(
                images=[image for _, images in kept for image in images],
                labels=np.repeat([label for label, _ in kept], [len(images) for _, images in kept]).astype(np.int64),
                class_names=tuple("/".join(parts) for parts in names),
                wholes=together,
            )
        )
    return records
