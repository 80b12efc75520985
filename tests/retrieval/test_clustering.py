"""k-means against scikit-learn's, and where there is little to cluster."""

import time

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from dml.retrieval.clustering import clusters, seeds


def squares(x, found):
    """The sum of squared distances of the rows from the centres of their clusters."""
    x = x.astype(np.float64)
    return sum(((x[found == c] - x[found == c].mean(axis=0)) ** 2).sum() for c in np.unique(found))


def synthetic(images, classes, dim, noise):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, dim))
    return (centres[rng.permutation(np.arange(images) % classes)] + noise * rng.standard_normal((images, dim))).astype(
        np.float32
    )


SETS = {
    "digits": lambda: (load_digits().data.astype(np.float32), 10),
    "omniglot": lambda: (synthetic(2640, 132, 64, 0.7), 132),
    "without structure": lambda: (synthetic(1500, 1, 16, 1.0), 75),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SETS)
def test_sums_of_squares_are_those_of_scikit_learn(name):
    x, k = SETS[name]()
    best = KMeans(k, n_init=5, random_state=0).fit(x).inertia_
    for seed in (0, 7):
        assert squares(x, clusters(x, k, seed=seed)) < 1.03 * best


def test_seeds_drawn_several_at_a_time_are_as_good(monkeypatch):
    x, k = SETS["omniglot"]()

    def reach():
        chosen = seeds(x, k, np.random.default_rng(0))
        assert len(set(chosen.tolist())) == k
        return ((x[:, None] - x[chosen]) ** 2).sum(axis=2).min(axis=1).sum()

    one_by_one = reach()
    monkeypatch.setattr("dml.retrieval.clustering._AT_ONCE", 20)  # 7 at a time, of 132
    assert reach() < 1.1 * one_by_one


def test_candidates_are_drawn_by_their_squared_distance():
    # Of a single cluster and no second candidate to choose from, the second seed is the far row 9 times of 10.
    x = np.array([[0.0]] * 10 + [[3.0]] + [[1.0]], np.float32)
    from dml.retrieval.clustering import _by_weight

    drawn = _by_weight(x[:, 0] ** 2, 10_000, np.random.default_rng(0))
    assert set(drawn.tolist()) == {10, 11} and (drawn == 10).mean() == pytest.approx(0.9, abs=0.02)
    assert set(_by_weight(np.zeros(4, np.float32), 100, np.random.default_rng(0)).tolist()) == {0, 1, 2, 3}


COLLAPSED = {
    "equal": lambda x: 0 * x + x[:1],
    "zero": lambda x: np.abs(0 * x),
    "two points": lambda x: x[np.arange(len(x)) % 2],
    "two points and noise": lambda x: x[np.arange(len(x)) % 2] + 1e-7 * x[::-1],
    "one point and noise": lambda x: x[:1] + 1e-7 * x,
    "every tenth equal": lambda x: np.where(np.arange(len(x))[:, None] % 10, x, x[:1]),
    "huge": lambda x: 1e30 * x,
    "tiny": lambda x: 1e-30 * x,
}


@pytest.mark.parametrize("kind", COLLAPSED)
def test_collapsed_embeddings_are_clustered_in_no_time(kind):
    x = COLLAPSED[kind](synthetic(2000, 50, 16, 0.3)).astype(np.float32)
    told, start = [], time.perf_counter()
    found = clusters(x, 200, restarts=1, progress=lambda *done: told.append(done))
    assert time.perf_counter() - start < 10
    assert found.shape == (2000,) and found.min() >= 0 and found.max() < 200 and told[-1] == (20, 20)
    distinct = np.unique(x, axis=0)
    if len(distinct) <= 200:
        assert len(set(zip(found.tolist(), map(bytes, x), strict=True))) == len(distinct) == len(set(found.tolist()))
