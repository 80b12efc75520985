"""Retrieval metrics as pure functions of the ranks of the positives; every value is in [0, 1], AMI's at most 1.

Queries without a positive (the only image of their class) count as a miss in Recall@K and Precision@K, and are left out
of the others.
Each metric is a mean over queries; OF_EACH has what it is the mean of, for those who look at some queries at a time.
"""

from collections.abc import Callable, Collection

import numpy as np

from dml.retrieval.clustering import clusters
from dml.retrieval.rows import Ranks


def recall_at_k(ranks: Ranks, k: int) -> float:
    """Share of all queries with at least one positive among their k nearest (Jegou et al. 2011, Song et al. 2016)."""
    return float((nearest(ranks) < k).sum() / len(ranks.counts))


def r_precision(ranks: Ranks) -> float:
    """Mean share of positives among the R nearest (Musgrave et al. 2020); R is the number of the query's positives."""
    return float(_r_precisions(ranks).mean())


def map_at_r(ranks: Ranks) -> float:
    """MAP@R: mean of (1/R) sum of the precisions at positives among the R nearest (Musgrave et al. 2020, eq. 4, 5)."""
    return float(_average_precisions_at_r(ranks).mean())


def mean_average_precision(ranks: Ranks) -> float:
    """MAP over the full ranking: mean over queries of the mean precision at each positive."""
    return float(_average_precisions(ranks).mean())


def mean_reciprocal_rank(ranks: Ranks) -> float:
    """MRR: mean of 1 / (place of the nearest positive, from 1) (Voorhees 1999)."""
    return float(_reciprocal_ranks(ranks).mean())


def precision_at_k(ranks: Ranks, k: int) -> float:
    """Mean share of positives among the k nearest, over all queries: one without a positive counts 0."""
    return float(precisions_at_k(ranks, k).sum() / len(ranks.counts))


def nmi(
    embeddings: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    restarts: int = 3,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> float:
    """Normalised mutual information of the labels with k-means clusters, one cluster a class (Song et al. 2016).

    Mutual information divided by the arithmetic mean of both entropies. Papers differ in that mean: the geometric one,
    of the earlier tables, gives the same or a little more.

    Args:
        embeddings: [N, D]. labels: [N].
        seed, restarts, progress: of the clustering.
    """
    return of_clusters(("nmi",), embeddings, labels, seed, restarts, progress)["nmi"]


def of_clusters(
    names: Collection[str],
    embeddings: np.ndarray,
    labels: np.ndarray,
    seed: int,
    restarts: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """nmi, and ami (adjusted for chance, Vinh et al. 2010, by the arithmetic mean; 0 in the mean of random clusters,
    which may be a little less), of one clustering.

    Args:
        names: of nmi and ami, what is wanted. The others are those of `nmi`.
    """
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    k = len(np.unique(labels))
    found = clusters(embeddings, k, seed=seed, restarts=restarts, progress=progress)
    scores = {"nmi": normalized_mutual_info_score, "ami": adjusted_mutual_info_score}
    return {name: float(scores[name](labels, found, average_method="arithmetic")) for name in scores if name in names}


def nearest(ranks: Ranks) -> np.ndarray:
    """The rank of the nearest positive of the queries that have one."""
    return ranks.ranks[_first(ranks)[ranks.counts > 0]]


def precisions_at_k(ranks: Ranks, k: int) -> np.ndarray:
    """The share of positives among the k nearest, of the queries that have a positive."""
    return _means(ranks, (ranks.ranks < k).astype(float)) * ranks.counts[ranks.counts > 0] / k


def _r_precisions(ranks: Ranks) -> np.ndarray:
    return _means(ranks, (ranks.ranks < _repeated(ranks, ranks.counts)).astype(float))


def _average_precisions_at_r(ranks: Ranks) -> np.ndarray:
    return _means(ranks, _precision(ranks) * (ranks.ranks < _repeated(ranks, ranks.counts)))


def _average_precisions(ranks: Ranks) -> np.ndarray:
    return _means(ranks, _precision(ranks))


def _reciprocal_ranks(ranks: Ranks) -> np.ndarray:
    return 1 / (nearest(ranks) + 1)


# Of the queries that have a positive.
OF_EACH: dict[str, Callable[[Ranks], np.ndarray]] = {
    "map@r": _average_precisions_at_r,
    "r_precision": _r_precisions,
    "map": _average_precisions,
    "mrr": _reciprocal_ranks,
}


def _first(ranks: Ranks) -> np.ndarray:
    """Where each query's positives begin."""
    return ranks.counts.cumsum() - ranks.counts


def _repeated(ranks: Ranks, values: np.ndarray) -> np.ndarray:
    """Values [Q] of the queries, one for each of their positives."""
    return np.repeat(values, ranks.counts)


def _precision(ranks: Ranks) -> np.ndarray:
    """Of the items up to each positive, the share that are positives."""
    before = np.arange(len(ranks.ranks)) - _repeated(ranks, _first(ranks))
    return (before + 1) / (ranks.ranks + 1)


def _means(ranks: Ranks, values: np.ndarray) -> np.ndarray:
    """The mean over the positives of each query that has one."""
    some = ranks.counts > 0
    return np.add.reduceat(values, _first(ranks)[some]) / ranks.counts[some] if some.any() else np.empty(0)
