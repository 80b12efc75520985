"""k-means with greedy k-means++ seeds: what NMI compares with the classes."""

import math
from collections.abc import Callable

import faiss
import numpy as np
import torch

from dml.products import matmul

ITERATIONS = 20
_AT_ONCE = 512  # clusters for each of which a pass over the rows chooses one more seed


def clusters(
    embeddings: np.ndarray,
    k: int,
    *,
    seed: int = 0,
    restarts: int = 3,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> np.ndarray:
    """The cluster [N] of each embedding [N, D], of the best of some k-means clusterings into k.

    Each starts from greedy k-means++ seeds and makes 20 iterations (FAISS); the one with the least sum of squared
    distances counts. Where no more than k rows differ, each of them is a cluster: no sum can be less than that zero.

    Args:
        seed: of the first restart; the others follow from it.
        restarts: at least 1.
        progress: is told after each iteration how many of how many are done.
    """
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)  # float32 tells more apart around the centre
    # A power of two changes no bit of the result, and FAISS ends the process where a square overflows or vanishes.
    x = np.ldexp(centred, -int(np.frexp(np.abs(centred).max())[1])).astype(np.float32, order="C")
    distinct, own = np.unique(x, axis=0, return_inverse=True)
    if len(distinct) <= k:
        progress(restarts * ITERATIONS, restarts * ITERATIONS)
        return own.reshape(-1)
    least, best = np.inf, np.zeros(0, dtype=np.int64)
    for restart in range(restarts):
        centroids = x[seeds(x, k, np.random.default_rng(seed + restart * ITERATIONS))]
        for iteration in range(ITERATIONS):
            kmeans = faiss.Kmeans(
                x.shape[1],
                k,
                niter=1,  # one at a time, so that someone can watch
                seed=(seed + restart * ITERATIONS + iteration) % 2**31,
                gpu=faiss.get_num_gpus() > 0,
                # Never train on a sample of the images, never warn about small classes.
                min_points_per_centroid=1,
                max_points_per_centroid=len(x),
            )
            kmeans.train(x, init_centroids=centroids)
            centroids = kmeans.centroids
            progress(restart * ITERATIONS + iteration + 1, restarts * ITERATIONS)
        squared, cluster = kmeans.index.search(x, 1)
        if (total := float(squared.sum(dtype=np.float64))) < least:
            least, best = total, cluster[:, 0]
    return best


def seeds(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Rows [k] of x [N, D] to start from, by greedy k-means++ (Arthur and Vassilvitskii 2007, section 5).

    Of 2 + log k candidates, drawn by their squared distance from the nearest seed, that one is taken which leaves the
    least sum of these, as scikit-learn does. With more than 512 clusters one pass over the rows chooses several seeds
    at once, each among candidates of its own: one in 512 of all.
    """
    candidates, each = 2 + int(math.log(k)), -(-k // _AT_ONCE)
    rows = torch.from_numpy(x)
    lengths = rows.square().sum(dim=1)
    chosen = [int(rng.integers(len(x)))]
    nearest = _squared(rows, lengths, np.array(chosen))[:, 0]
    while len(chosen) < k:
        count = min(each, k - len(chosen))
        drawn = _by_weight(nearest.numpy(), count * candidates, rng)
        reach = torch.minimum(_squared(rows, lengths, drawn), nearest[:, None])
        left = reach.sum(dim=0, dtype=torch.float64).view(count, candidates)
        taken = left.argmin(dim=1) + torch.arange(count) * candidates
        chosen += drawn[taken.numpy()].tolist()
        nearest = reach[:, taken].amin(dim=1)
    return np.array(chosen)


def _squared(rows: torch.Tensor, lengths: torch.Tensor, those: np.ndarray) -> torch.Tensor:
    """Squared distances [N, c] of all rows from those, roughly."""
    index = torch.from_numpy(those)
    return matmul(rows, rows[index], lengths[index] / -2).mul_(-2).add_(lengths[:, None]).clamp_(min=0)


def _by_weight(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [count] drawn in proportion to the weights [N]; any of them, if all are zero."""
    sums = weights.cumsum(dtype=np.float64)
    if not sums[-1]:
        return rng.integers(len(weights), size=count)
    return np.searchsorted(sums, rng.random(count) * sums[-1], side="right").clip(max=len(weights) - 1)
