"""Retrieval metrics as pure functions of the ranks of the positives; every value is in [0, 1].

Queries without a positive (the only image of their class) count as a miss in Recall@K and are left out of the others.
"""

from collections.abc import Callable

import faiss
import numpy as np

from dml.retrieval.ranks import Ranks


def recall_at_k(ranks: Ranks, k: int) -> float:
    """Share of all queries with at least one positive among their k nearest (Jegou et al. 2011, Song et al. 2016)."""
    return float((_nearest(ranks) < k).sum() / len(ranks.counts))


def r_precision(ranks: Ranks) -> float:
    """Mean share of positives among the R nearest (Musgrave et al. 2020); R is the number of the query's positives."""
    return _mean(ranks, (ranks.ranks < _repeated(ranks, ranks.counts)).astype(float))


def map_at_r(ranks: Ranks) -> float:
    """MAP@R: mean of (1/R) sum of the precisions at positives among the R nearest (Musgrave et al. 2020, eq. 4, 5)."""
    return _mean(ranks, _precision(ranks) * (ranks.ranks < _repeated(ranks, ranks.counts)))


def mean_average_precision(ranks: Ranks) -> float:
    """MAP over the full ranking: mean over queries of the mean precision at each positive."""
    return _mean(ranks, _precision(ranks))


def mean_reciprocal_rank(ranks: Ranks) -> float:
    """MRR: mean of 1 / (place of the nearest positive, from 1) (Voorhees 1999)."""
    return float((1 / (_nearest(ranks) + 1)).mean())


def nmi(
    embeddings: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    restarts: int = 3,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> float:
    """Normalised mutual information of the labels with k-means clusters, one cluster a class (Song et al. 2016).

    FAISS k-means++ with 20 iterations; of the restarts, from seeds that the given one fixes, the one with the least
    squared distances.

    Args:
        embeddings: [N, D]. labels: [N].
        seed: of the first restart.
        restarts: at least 1.
        progress: is told after each iteration how many of how many are done.
    """
    from sklearn.metrics import normalized_mutual_info_score

    # A power of two changes no bit of the result, and FAISS ends the process where a square overflows or vanishes.
    x = np.ldexp(np.ascontiguousarray(embeddings, dtype=np.float32), -int(np.frexp(np.abs(embeddings).max())[1]))
    iterations, least, best = 20, np.inf, np.zeros(0, dtype=np.int64)
    for restart in range(restarts):
        centroids = None
        for iteration in range(iterations):
            kmeans = faiss.Kmeans(
                x.shape[1],
                len(np.unique(labels)),
                niter=1,  # one at a time, so that someone can watch
                seed=seed + restart * iterations + iteration,
                gpu=faiss.get_num_gpus() > 0,
                init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
                # Never train on a sample of the images, never warn about small classes.
                min_points_per_centroid=1,
                max_points_per_centroid=len(x),
            )
            kmeans.train(x, init_centroids=centroids)
            centroids = kmeans.centroids
            progress(restart * iterations + iteration + 1, restarts * iterations)
        squared, cluster = kmeans.index.search(x, 1)
        if (total := float(squared.sum(dtype=np.float64))) < least:
            least, best = total, cluster[:, 0]
    return float(normalized_mutual_info_score(labels, best))


def _first(ranks: Ranks) -> np.ndarray:
    """Where each query's positives begin."""
    return ranks.counts.cumsum() - ranks.counts


def _repeated(ranks: Ranks, values: np.ndarray) -> np.ndarray:
    """Values [Q] of the queries, one for each of their positives."""
    return np.repeat(values, ranks.counts)


def _nearest(ranks: Ranks) -> np.ndarray:
    """The rank of the nearest positive of the queries that have one."""
    return ranks.ranks[_first(ranks)[ranks.counts > 0]]


def _precision(ranks: Ranks) -> np.ndarray:
    """Of the items up to each positive, the share that are positives."""
    before = np.arange(len(ranks.ranks)) - _repeated(ranks, _first(ranks))
    return (before + 1) / (ranks.ranks + 1)


def _mean(ranks: Ranks, values: np.ndarray) -> float:
    """Mean over queries of the mean over their positives."""
    some = ranks.counts > 0
    return float((np.add.reduceat(values, _first(ranks)[some]) / ranks.counts[some]).mean())
