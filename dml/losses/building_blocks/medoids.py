"""Medoids of a batch by facility location: greedy choice and PAM's exchange, scored with the NMI of the clusters.

Song, Jegelka, Rathod and Murphy (2017), section 3. In numpy on the CPU: it is a sequence of small steps, each of which
needs the one before.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[Any]

_TIE = 1e-11  # distances on the sphere that differ by less are equal
_NONE = 1e-12  # share of the largest entropy that is rounding


def choose_medoids(d: Floats, labels: Ints, gamma: float, pam_iterations: int) -> tuple[Ints, Ints, float]:
    """As many medoids as there are classes, that make -sum_i min_s D_is + gamma (1 - NMI) large.

    Greedily one after the other, then `pam_iterations` sweeps: with the clusters as they are at the beginning of a
    sweep, each takes the member as its medoid that scores best, while the others keep theirs of now. Of what differs by
    rounding alone the first is taken; a cluster of two, for instance, has two medoids that are equally good.

    Args:
        d: distances [m, m].
        labels: classes [m], from 0 on and each there.

    Returns:
        The medoids [k], the one of each point [m] as a place among them, and the NMI.
    """
    nmi = NormalizedMutualInformation(labels)
    chosen = _greedy(d, nmi, gamma)
    for _ in range(pam_iterations):
        before = chosen.copy()
        _exchange(d, nmi, gamma, chosen)
        if np.array_equal(before, chosen):
            break  # every further sweep would end the same
    place = assigned(d, chosen)
    return chosen, place, float(nmi.of(place[None])[0])


def assigned(d: Floats, chosen: Ints) -> Ints:
    """The nearest medoid of each point [m], as a place among them; of a medoid itself."""
    place = _first(d[chosen].T)
    place[chosen] = np.arange(len(chosen))
    return place


def _first(distances: Floats) -> Ints:
    """The column of the least of each row; of equal ones the first."""
    return (distances <= distances.min(axis=1, keepdims=True) + _TIE).argmax(axis=1)


def _best(scores: Floats, m: int) -> int:
    """The first of the best, each of which is a sum of m distances."""
    return int((scores >= scores.max() - m * _TIE).argmax())


class NormalizedMutualInformation:
    """NMI of classes and clusters, with the geometric mean of their entropies; 1 if there is one of each.

    Args:
        labels: classes [m], from 0 on.
    """

    def __init__(self, labels: Ints) -> None:
        self.m, self.labels = len(labels), labels
        self.classes = int(labels.max()) + 1
        sizes = np.arange(self.m + 1, dtype=np.float64)
        self.weights: Floats = sizes * np.log(np.maximum(sizes, 1))  # n log n
        self.of_classes = self.weights[np.bincount(labels)].sum()

    def of(self, place: Ints) -> Floats:
        """NMI [b] of several clusterings [b, m], each place from 0 to m - 1."""
        first = np.arange(len(place))[:, None] * self.m
        clusters = self._sums(first + place, self.m, len(place))
        cells = self._sums((first + place) * self.classes + self.labels, self.m * self.classes, len(place))
        return self.by_sums(clusters, cells)

    def _sums(self, keys: Ints, span: int, rows: int) -> Floats:
        """Of each row the sum of n log n over how often each key is there."""
        found, counts = np.unique(keys, return_counts=True)
        return _added(found // span, self.weights[counts], rows)

    def by_sums(self, clusters: Floats, cells: Floats) -> Floats:
        """NMI of the sums of n log n over the sizes of clusters, and over what each has of each class."""
        whole = self.weights[-1]
        # m times each entropy is m log m - sum n log n.
        own, others = np.maximum(whole - clusters, 0), max(whole - self.of_classes, 0.0)
        shared = np.maximum(whole - self.of_classes - clusters + cells, 0)
        # One cluster, or one class: what is left of rounding is no information.
        ends = np.where((own > _NONE * whole) | (others > _NONE * whole), 0.0, 1.0)
        varied = (own > _NONE * whole) & (others > _NONE * whole)
        value = shared / np.sqrt(np.where(varied, own * others, 1))
        return np.where(varied, np.where(value > 1 - _NONE, 1.0, value), ends)


def _added(where: Ints, values: Floats, n: int) -> Floats:
    """The sums [n] of the values of each place."""
    return np.bincount(where, values, n).astype(np.float64, copy=False)  # whole numbers, where there is none


def _greedy(d: Floats, nmi: NormalizedMutualInformation, gamma: float) -> Ints:
    m, c = nmi.m, nmi.classes
    chosen, place, best = np.zeros(c, np.int64), np.zeros(m, np.int64), np.full(m, np.inf)
    # The points that each candidate would take from their medoids: fewer with each step, so that all steps together
    # look at m^2 log k of them.
    who, whom = (each.ravel() for each in np.indices((m, m), np.int32))
    gap = np.zeros(0)
    for k in range(c):
        if k == 0:
            scores = -d.sum(axis=1) + gamma * (1 - nmi.by_sums(np.full(m, nmi.weights[-1]), np.full(m, nmi.of_classes)))
        else:
            scores = _scores(who, whom, gap, place, k, nmi, gamma) - best.sum()
            scores[chosen[:k]] = -np.inf
        chosen[k] = new = _best(scores, m)
        moved = (d[new] < best - _TIE) | (np.arange(m) == new)
        moved[chosen[:k]] = False
        place[moved], best[moved] = k, d[new, moved]
        keep = (d[who, whom] < best[whom] - _TIE) | (who == whom)
        keep &= ~np.isin(whom, chosen[: k + 1])
        who, whom = who[keep], whom[keep]
        gap = best[whom] - d[who, whom]
    return chosen


def _scores(
    who: Ints, whom: Ints, gap: Floats, place: Ints, k: int, nmi: NormalizedMutualInformation, gamma: float
) -> Floats:
    """What each candidate adds to -sum_j best_j, plus gamma (1 - NMI) with it as the medoid number k."""
    m, c, weights = nmi.m, nmi.classes, nmi.weights
    sizes = np.bincount(place, minlength=c)
    table = np.bincount(place * c + nmi.labels, minlength=c * c)
    clusters: Floats = np.full(m, weights[sizes].sum())
    cells: Floats = np.full(m, weights[table].sum())
    # What is taken from a cluster, from its members of a class, and comes together in the new cluster.
    for base, sums, own in ((sizes, clusters, place), (table, cells, place * c + nmi.labels)):
        keys, taken = np.unique(who.astype(np.int64) * len(base) + own[whom], return_counts=True)
        row, at = keys // len(base), base[keys % len(base)]
        sums += _added(row, weights[at - taken] - weights[at], m)
    clusters += weights[np.bincount(who, minlength=m)]
    keys, taken = np.unique(who.astype(np.int64) * c + nmi.labels[whom], return_counts=True)
    cells += _added(keys // c, weights[taken], m)
    return _added(who, gap, m) + gamma * (1 - nmi.by_sums(clusters, cells))


def _exchange(d: Floats, nmi: NormalizedMutualInformation, gamma: float, chosen: Ints) -> None:
    """One sweep of PAM over the clusters, in place."""
    clusters, near = assigned(d, chosen), d[:, chosen]
    for k in range(len(chosen)):
        members = np.flatnonzero(clusters == k)
        if len(members) == 1:
            continue
        others = near.copy()
        others[:, k] = np.inf
        place = _first(others)
        least = others[np.arange(nmi.m), place]
        # The place of a medoid among them decides between equal distances.
        nearer = d[members] < np.where(k < place, least + _TIE, least - _TIE)
        places = np.where(nearer, k, place)
        rest = np.delete(np.arange(len(chosen)), k)
        places[:, chosen[rest]] = rest
        places[np.arange(len(members)), members] = k
        scores = -d[np.ix_(members, members)].sum(axis=0) + gamma * (1 - nmi.of(places))
        chosen[k] = members[_best(scores, nmi.m)]
        near[:, k] = d[:, chosen[k]]
