"""The metrics by hand."""

import numpy as np
import pytest

from dml.retrieval import metrics as m
from dml.retrieval.rows import Ranks


def ranks(*queries):
    return Ranks(np.array([rank for query in queries for rank in query]), np.array([len(query) for query in queries]))


FOUR = ranks([0, 2], [1, 2, 3], [3], [])  # the last query has no positive


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 4), (2, 2 / 4), (3, 2 / 4), (4, 3 / 4)])
def test_recall_counts_a_query_without_positive_as_a_miss(k, expected):
    assert m.recall_at_k(FOUR, k) == expected


def test_r_precision_leaves_out_queries_without_positive():
    assert m.r_precision(FOUR) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3, rel=1e-12)


def test_map_at_r_leaves_out_queries_without_positive():
    # Among the R nearest: precision 1 at the first; 1/2 and 2/3 at the second and third; none.
    assert m.map_at_r(FOUR) == pytest.approx((1 / 2 + (1 / 2 + 2 / 3) / 3 + 0) / 3, rel=1e-12)


def test_map_at_r_of_the_reality_checks_table():
    # Musgrave et al. 2020, figure 2: ten items of each class; R-precision cannot tell the first two apart, MAP@R can.
    first, last, two = (ranks([*found, *range(100, 110 - len(found))]) for found in ([0], [9], [0, 1]))
    assert [m.r_precision(each) for each in (first, last, two)] == pytest.approx([0.1, 0.1, 0.2])
    assert [m.map_at_r(each) for each in (first, last, two)] == pytest.approx([0.1, 0.01, 0.2])


def test_mean_average_precision_looks_at_the_whole_ranking():
    assert m.mean_average_precision(ranks([0, 2], [], [4])) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 5) / 2, rel=1e-12)


def test_mean_reciprocal_rank_looks_at_the_nearest_positive():
    assert m.mean_reciprocal_rank(ranks([0, 2], [], [4], [1, 2])) == pytest.approx((1 + 1 / 5 + 1 / 2) / 3, rel=1e-12)


def test_perfect_and_worst():
    perfect, worst = ranks([0, 1], [0, 1]), ranks([8, 9], [8, 9])
    for found, expected in ((perfect, 1.0), (worst, 0.0)):
        assert m.recall_at_k(found, 1) == m.r_precision(found) == m.map_at_r(found) == expected
    assert m.mean_average_precision(perfect) == m.mean_reciprocal_rank(perfect) == 1.0


def test_nmi_of_separated_clusters_is_one():
    rng = np.random.default_rng(0)
    labels = np.repeat([7, -1, 3], [30, 20, 50])
    centres = {7: (9, 0, 0), -1: (0, 9, 0), 3: (0, 0, 9)}
    x = np.array([centres[c] for c in labels]) + rng.standard_normal((100, 3)) * 0.1
    order = rng.permutation(100)
    assert m.nmi(x[order], labels[order]) == pytest.approx(1.0, abs=1e-9)


def test_nmi_of_merged_pairs_by_hand():
    # Two places, but three classes: k-means finds two clusters, {0, 1} and {2}; H(labels) = 1.5 bit, H(clusters) = 1
    # bit, all of which the labels know. The third centroid shares one of the places.
    x = np.array([[0.0, 0.0]] * 4 + [[5.0, 5.0]] * 4)
    value = m.nmi(x, np.array([0, 0, 1, 1, 2, 2, 2, 2]))
    assert value == pytest.approx(1 / ((1.5 + 1) / 2), rel=1e-6)


def test_nmi_of_random_labels_is_low():
    rng = np.random.default_rng(0)
    assert 0 <= m.nmi(rng.standard_normal((1000, 4)), rng.integers(0, 4, 1000)) < 0.02


def test_nmi_is_deterministic_and_depends_on_its_seed_alone():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((400, 6)), rng.integers(0, 20, 400)
    values = []
    for seed in range(3):
        np.random.seed(seed)
        values.append(m.nmi(x, labels))
    assert len(set(values)) == 1
    assert m.nmi(x, labels, seed=1) != values[0]


def test_nmi_clusters_all_images_and_takes_small_classes():
    # faiss would train on 256 points a centroid at most, and warn below 39.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [1500, 1])
    x = rng.standard_normal((1501, 2)) * 0.1
    x[-1] = 100
    for order in (np.arange(1501), np.arange(1501)[::-1]):
        assert m.nmi(x[order], labels[order]) == pytest.approx(1.0, abs=1e-9)


def test_nmi_of_one_class_and_of_identical_embeddings():
    rng = np.random.default_rng(0)
    assert m.nmi(rng.standard_normal((20, 3)), np.zeros(20)) == 1.0
    assert m.nmi(np.ones((20, 3)), np.arange(20) % 2) == pytest.approx(0.0, abs=1e-9)


def test_nmi_keeps_the_best_of_its_restarts_and_tells_how_far_it_is():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((300, 2)), rng.integers(0, 9, 300)
    told = []
    values = {restarts: m.nmi(x, labels, 3, restarts, lambda *done: told.append(done)) for restarts in (1, 2, 6)}
    assert told == [(i, n) for n in (20, 40, 120) for i in range(1, n + 1)]
    alone = [m.nmi(x, labels, 3 + 20 * restart, 1) for restart in range(6)]
    assert values[1] == alone[0] and values[2] in alone[:2] and values[6] in alone and len(set(alone)) > 1


def test_nmi_divides_by_the_arithmetic_mean_of_the_entropies():
    # Clusters of 4, 2 and 2: 1.5 bit; the last one holds two classes, half and half.
    x, labels = np.repeat([[0.0], [5.0], [9.0]], [4, 2, 2], axis=0), np.array([0] * 4 + [1] * 3 + [2])
    halves = 0.5 + 3 / 8 * np.log2(8 / 3) + 3 / 8  # entropy of 4, 3 and 1 of 8
    assert m.nmi(x, labels) == pytest.approx((halves - 0.25) / ((1.5 + halves) / 2), rel=1e-6)
