"""Exact neighbours, against the brute force of tests/retrieval/oracle.py."""

import numpy as np
import pytest

from dml.retrieval.search import Search
from tests.retrieval import oracle

KINDS = ["random", "grid", "two_values", "twins", "identical"]
SIZES = [(120, 3, 10), (97, 16, 5), (40, 1, 4), (60, 2, 60), (2, 3, 1)]


def nearest(queries, gallery, k, own_index=None):
    return Search(gallery)(queries, k, own_index)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dim", "classes"), SIZES)
def test_items_among_the_others(kind, n, dim, classes):
    x, _y = oracle.embeddings_and_labels(kind, n, dim, classes)
    own = np.arange(n)
    order, distances = oracle.ranking(x, x, own)
    for k in {1, min(10, n - 1), n - 1}:
        found, found_distances = nearest(x, x, k, own)
        np.testing.assert_array_equal(found, order[:, :k])
        np.testing.assert_allclose(found_distances, distances[:, :k], rtol=1e-12)
        assert found_distances.dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dim", "classes"), SIZES)
def test_queries_among_a_gallery(kind, n, dim, classes):
    # The gallery holds a copy of each query, which is not left out.
    q, _q_labels = oracle.embeddings_and_labels(kind, 25, dim, classes + 3, seed=1)
    g, _g_labels = oracle.embeddings_and_labels(kind, n, dim, classes, seed=2)
    g[: min(n, 25)] = q[: min(n, 25)]
    order, distances = oracle.ranking(q, g)
    for k in {1, min(10, n), n}:
        found, found_distances = nearest(q, g, k)
        np.testing.assert_array_equal(found, order[:, :k])
        np.testing.assert_allclose(found_distances, distances[:, :k], rtol=1e-12)


def test_part_of_the_gallery_as_queries():
    x, _y = oracle.embeddings_and_labels("grid", 80, 2, 6)
    own = np.array([5, 79, 0, 33, 33])
    order, _ = oracle.ranking(x[own], x, own)
    np.testing.assert_array_equal(nearest(x[own], x, 12, own)[0], order[:, :12])


@pytest.mark.parametrize("scale", [2.0**-64, 1.0, 2.0**64])
def test_what_float32_cannot_tell_is_told_at_any_scale(scale):
    # Squares of the largest scale are beyond float32, and so was the bound that says whether to look a second time.
    gallery = np.append(9, np.linspace(1 + 1e-9, 1, 60))[:, None] * scale
    np.testing.assert_array_equal(nearest(np.zeros((1, 1)), gallery, 3)[0], [[60, 59, 58]])


@pytest.mark.parametrize("spare", range(-2, 4))
def test_ties_that_reach_just_beyond_the_proposals(spare):
    # One near item, then equally near ones: as many as k + 8 proposals hold, give or take a few. The tied items come
    # in an order that no search can guess.
    k = 3
    ties = k + 8 + spare
    gallery = np.vstack([np.full((1, 2), 9.0), *[[[(-1.0) ** i, 0.0]] for i in range(ties)], [[0.0, 0.5]]])
    found, distances = nearest(np.zeros((30, 2)), gallery, k)
    np.testing.assert_array_equal(found, np.tile([ties + 1, 1, 2], (30, 1)))
    np.testing.assert_array_equal(distances, np.tile([0.5, 1.0, 1.0], (30, 1)))


def test_duplicates_do_not_hide_the_query_itself():
    x = np.zeros((4, 3))
    np.testing.assert_array_equal(nearest(x, x, 3, np.arange(4))[0], [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    np.array([0, 1, 1, 0])


HARD = {
    # Float32's |x|^2 + |y|^2 - 2xy has no digit left of these distances.
    "far_from_the_origin": lambda x: x + 1000,
    "one_tight_cluster": lambda x: oracle.normalised(x[:1]) + 1e-3 * x / x.shape[1] ** 0.5,
    "tight_clusters": lambda x: oracle.normalised(x[np.arange(len(x)) % 4]) + 1e-4 * x / x.shape[1] ** 0.5,
    # The largest norm must not decide how well small distances are told apart.
    "one_outlier": lambda x: np.vstack([x[:1] * 1e4, x[1:]]),
    "tiny": lambda x: x * 1e-12,
    "huge": lambda x: x * 1e12,
}


@pytest.fixture(scope="module", params=HARD)
def hard(request):
    x, y = oracle.embeddings_and_labels("random", 450, 512, 30)
    x = HARD[request.param](x).astype(np.float32)
    rows = np.arange(0, 450, 15)
    return x, y, rows, oracle.ranking(x[rows], x, rows)


def test_neighbours_are_exact_where_float32_is_not(hard):
    x, _, rows, (order, distances) = hard
    found, found_distances = nearest(x, x, 10, np.arange(len(x)))
    np.testing.assert_array_equal(found[rows], order[:, :10])
    np.testing.assert_allclose(found_distances[rows], distances[:, :10], rtol=1e-12)


def test_distances_far_below_the_largest_norm_are_told_apart():
    # 0.5 and 1 millionth of the largest norm: far from equal to 1e-11 of it, as the documentation has it.
    gallery, _labels = np.array([[1.0], [1e-6], [5e-7]]), np.array([0, 1, 2])
    np.testing.assert_array_equal(nearest(np.zeros((1, 1)), gallery, 3)[0], [[2, 1, 0]])


def test_float64_and_strided_inputs():
    x, _y = oracle.embeddings_and_labels("random", 50, 4, 5)
    own = np.arange(50)
    strided = np.repeat(x.astype(np.float64), 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(nearest(strided, strided, 7, own)[0], nearest(x, x, 7, own)[0])


def test_inputs_are_left_alone():
    x, y = oracle.embeddings_and_labels("grid", 50, 4, 5)
    kept = x.copy(), y.copy()
    nearest(x, x, 7, np.arange(50))
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])


@pytest.mark.parametrize(("k", "own", "most"), [(6, False, 5), (5, True, 4), (0, False, 5), (-1, True, 4)])
def test_more_neighbours_than_there_are_is_refused(k, own, most):
    x = np.eye(5)
    with pytest.raises(ValueError, match=rf"evaluator\.ks asks for {k} .*1 to {most}\b"):
        nearest(x, x, k, np.arange(5) if own else None)
    assert nearest(x, x, most, np.arange(5) if own else None)[0].shape == (5, most)


def test_blocks_do_not_show(monkeypatch):
    x, _y = oracle.embeddings_and_labels("grid", 70, 3, 6)
    own = np.arange(70)
    neighbours = nearest(x, x, 9, own)
    monkeypatch.setattr("dml.retrieval.search._BLOCK_ELEMENTS", 700)
    for whole, in_blocks in zip(neighbours, nearest(x, x, 9, own), strict=True):
        np.testing.assert_array_equal(whole, in_blocks)
