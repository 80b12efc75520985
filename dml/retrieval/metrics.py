"""Retrieval metrics as pure functions; every value is in [0, 1].

`hits` is [Q, k] bool: is the r-th neighbour of the query of its class? `relevant` is [Q]: how many gallery items
(self excluded) are of the query's class, R in Musgrave et al.
"""

import faiss
import numpy as np


def recall_at_k(hits: np.ndarray, k: int) -> float:
    """Share of all queries with at least one hit among their k nearest (Jegou et al. 2011, Song et al. 2016).

    A query without any positive in the gallery counts as a miss, as in Song et al.
    """
    return float(hits[:, :k].any(axis=1).mean())


def r_precision(hits: np.ndarray, relevant: np.ndarray) -> float:
    """Mean share of hits among the R nearest (Musgrave et al. 2020); queries with R = 0 are left out."""
    within = hits & (np.arange(hits.shape[1]) < relevant[:, None])
    return _mean_over_relevant(within.sum(axis=1), relevant)


def map_at_r(hits: np.ndarray, relevant: np.ndarray) -> float:
    """MAP@R: mean of (1/R) sum of the precisions at the hits among the R nearest (Musgrave et al. 2020, eq. 4 and 5).

    Queries with R = 0 are left out.
    """
    within = hits & (np.arange(hits.shape[1]) < relevant[:, None])
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return _mean_over_relevant((precision * within).sum(axis=1), relevant)


def mean_average_precision(ranks: list[np.ndarray]) -> float:
    """MAP over the full ranking: mean over queries of the mean precision at each positive.

    Args:
        ranks: of each query's positives in the gallery, ascending from 0; queries without one are left out.
    """
    return float(np.mean([np.mean(np.arange(1, len(r) + 1) / (r + 1)) for r in ranks if len(r)]))


def nmi(embeddings: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Normalised mutual information of the labels with k-means clusters, one cluster a class (Song et al. 2016).

    FAISS k-means++ with 20 iterations, the best of 3 restarts, from a fixed seed.
    """
    from sklearn.metrics import normalized_mutual_info_score

    x = np.ascontiguousarray(embeddings, dtype=np.float32)
    classes = len(np.unique(labels))
    kmeans = faiss.Kmeans(
        x.shape[1],
        classes,
        niter=20,
        nredo=3,
        seed=seed,
        gpu=faiss.get_num_gpus() > 0,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        # Never train on a sample of the images, never warn about small classes.
        min_points_per_centroid=1,
        max_points_per_centroid=len(x),
    )
    kmeans.train(x)
    return float(normalized_mutual_info_score(labels, kmeans.index.search(x, 1)[1][:, 0]))


def _mean_over_relevant(sums: np.ndarray, relevant: np.ndarray) -> float:
    some = relevant > 0
    return float((sums[some] / relevant[some]).mean())
