"""What the nearest neighbours of some queries say: the worst queries, classes that are confused, labels in doubt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_CLOSE = 0.1  # of the usual distance of a nearest image: two images as close as that are nearly one


@dataclass(frozen=True)
class Looked:
    """Some queries with their nearest images.

    Attributes:
        sample: [S] which of the Q queries, in random order.
        near: [S, k] their nearest images in the gallery, the nearest first. distance: [S, k].
        labels: [Q] of the queries. found_labels: [G] of the gallery, which may be the queries.
        names: of the classes.
        own: [Q] where in the gallery each query is; -1: nowhere.
        positives: [Q] how many right ones each query has.
        grouped: images of the query's own group (a camera, a session) are left out, as in the metrics.
    """

    sample: np.ndarray
    near: np.ndarray
    distance: np.ndarray
    labels: np.ndarray
    found_labels: np.ndarray
    names: Sequence[str]
    own: np.ndarray
    positives: np.ndarray
    grouped: bool = False

    @property
    def hits(self) -> np.ndarray:
        """[S, k] which neighbours are of the query's class."""
        return self.found_labels[self.near] == self.labels[self.sample, None]

    @property
    def order(self) -> np.ndarray:
        """Places in the sample, the worst query first; of equally bad ones those that come first in the sample.

        A query's score is the mean precision at the right ones among its R nearest (its share of MAP@R), R being the
        number of right ones that there are, at most k.
        """
        k = self.near.shape[1]
        return np.argsort(scores(self.hits, np.minimum(self.positives[self.sample], k)), kind="stable")

    def worst_and_typical(self, lines: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in the sample: of the worst queries, and of those around the median."""
        order = self.order
        middle = max(0, len(order) // 2 - lines // 2)
        return order[:lines], order[middle : middle + lines]


def scores(hits: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Mean precision [q] at the hits [q, k] among the first r [q] of each query."""
    rank = np.arange(1, hits.shape[1] + 1)
    inside = hits & (rank <= r[:, None])
    return (inside * hits.cumsum(axis=1) / rank).sum(axis=1) / r


class Confused(NamedTuple):
    """Queries of a class whose nearest image is of another one.

    Attributes:
        queries, found: the classes. times: of how many queries; of: of all `of` of the class in the sample.
        query, image: one of these and what it found, indices of queries and of the gallery.
    """

    queries: int
    found: int
    times: int
    of: int
    query: int
    image: int


def confused(looked: Looked, most: int) -> list[Confused]:
    """The pairs of classes that are confused most often; of equally frequent ones the larger share first."""
    first, asked = looked.found_labels[looked.near[:, 0]], looked.labels[looked.sample]
    wrong = np.flatnonzero(first != asked)
    sizes = np.bincount(asked)
    nearest = wrong[np.argsort(looked.distance[wrong, 0], kind="stable")]  # the example: the closest of them
    pairs, at, counts = np.unique(
        np.stack([asked[nearest], first[nearest]], axis=1), axis=0, return_index=True, return_counts=True
    )
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts / sizes[pairs[:, 0]], -counts))[:most]
    return [
        Confused(
            int(pairs[i, 0]),
            int(pairs[i, 1]),
            int(counts[i]),
            int(sizes[pairs[i, 0]]),
            int(looked.sample[nearest[at[i]]]),
            int(looked.near[nearest[at[i]], 0]),
        )
        for i in order
    ]


class Pair(NamedTuple):
    """A query and an image near it.

    Attributes:
        query, image: indices of queries and of the gallery.
        closeness: their distance, as a share of the usual one (the median) of a query and its nearest image.
        agreeing: how many of the query's k nearest images are of the image's class. of: k.
    """

    query: int
    image: int
    closeness: float
    agreeing: int
    of: int


def suspicious(looked: Looked, most: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs of two classes that lie closer than is usual, and pairs of one class that are nearly one image.

    The nearest first; each pair once. The former are wrong labels, one image under two classes, or classes that look
    alike; the latter duplicates.
    """
    usual = float(np.median(looked.distance[:, 0])) or 1.0
    found: tuple[list[Pair], list[Pair]] = ([], [])
    hits = looked.hits
    of_class = looked.found_labels[looked.near]
    place = np.arange(looked.near.shape[1])
    for wanted, limit, into in ((~hits, usual, found[0]), (hits, _CLOSE * usual, found[1])):
        first = np.where(wanted, place, place[-1] + 1).min(axis=1)  # the nearest of the kind
        row = np.flatnonzero(first <= place[-1])
        distance = looked.distance[row, first[row]]
        row = row[np.argsort(distance, kind="stable")]
        seen: set[tuple[int, int]] = set()
        for i in row:
            d = float(looked.distance[i, first[i]])
            if d >= limit or len(into) == most:
                break
            query, image = int(looked.sample[i]), int(looked.near[i, first[i]])
            here = int(looked.own[query])
            key = (min(here, image), max(here, image)) if here >= 0 else (-1 - query, image)
            if key not in seen:
                seen.add(key)
                agreeing = int((of_class[i] == looked.found_labels[image]).sum())
                into.append(Pair(query, image, d / usual, agreeing, len(place)))
    return found


def recall_by_class(labels: np.ndarray, first_rank: np.ndarray) -> list[tuple[int, float, int]]:
    """(Class, Recall@1, queries) of each class that has a query, the worst first; of equal ones the larger first.

    Args:
        labels: [Q] of the queries.
        first_rank: [Q] where the nearest right image of each stands, from 0; -1: it has none, which is a miss.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    right = np.bincount(labels[first_rank == 0], minlength=int(labels.max()) + 1)[classes]
    order = np.lexsort((classes, -sizes, right / sizes))
    return [(int(classes[i]), float(right[i] / sizes[i]), int(sizes[i])) for i in order]
