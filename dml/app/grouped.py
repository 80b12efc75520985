"""Images of groups (cameras, sessions), which are searched among those of other groups: told before the training."""

from collections.abc import Iterator

import numpy as np

from dml.data.dataset import Records


def fewest_found(queries: Records, gallery: Records) -> int:
    """How many images the query of the largest group is searched in; without groups all."""
    return int(_of_others(queries, gallery)[0].min())


def problems_of_groups(side: str, queries: Records, gallery: Records) -> Iterator[str]:
    """What leaves the queries of a part without anything to find.

    Args:
        side: the part, in words.
        queries: of it.
        gallery: what they are searched in, which may be the queries.
    """
    if queries.groups is None:
        return
    others, positives = _of_others(queries, gallery)
    if not others.all():
        group = queries.groups[int(others.argmin())]
        yield f"data: all images that the {side} part is searched in are of the group {group}: its queries find nothing"
    elif not positives.any():
        yield f"data: no query of the {side} part has an image of its class in another group (data.group_column)"


def _of_others(queries: Records, gallery: Records) -> tuple[np.ndarray, np.ndarray]:
    """How many images of other groups there are for each query [Q], and how many of these are of its class."""
    if queries.groups is None or gallery.groups is None:
        return np.array([len(gallery)]), np.ones(1)
    names, number = np.unique(np.concatenate([queries.groups, gallery.groups]), return_inverse=True)
    asked, there = np.split(number, [len(queries)])
    classes = 1 + int(max(queries.labels.max(), gallery.labels.max()))
    table = np.zeros((classes, len(names)), dtype=np.int64)
    np.add.at(table, (gallery.labels, there), 1)
    same = table[:, asked].sum(axis=0)
    return len(gallery) - same, table.sum(axis=1)[queries.labels] - table[queries.labels, asked]
