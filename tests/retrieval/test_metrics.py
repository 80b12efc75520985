"""The metrics by hand."""

import numpy as np
import pytest

from dml.retrieval import metrics as m

HITS = np.array(
    [
        [1, 0, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
    ],
    dtype=bool,
)
RELEVANT = np.array([2, 3, 1, 0])  # the last query has no positive


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 4), (2, 2 / 4), (3, 2 / 4), (4, 3 / 4)])
def test_recall_counts_a_query_without_positive_as_a_miss(k, expected):
    assert m.recall_at_k(HITS, k) == expected


def test_r_precision_leaves_out_queries_without_positive():
    assert m.r_precision(HITS, RELEVANT) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3, rel=1e-12)


def test_map_at_r_leaves_out_queries_without_positive():
    # Among the R nearest: precision 1 at the first; 1/2 and 2/3 at the second and third; none.
    assert m.map_at_r(HITS, RELEVANT) == pytest.approx((1 / 2 + (1 / 2 + 2 / 3) / 3 + 0) / 3, rel=1e-12)


def test_map_at_r_of_the_reality_checks_table():
    # Musgrave et al. 2020, figure 2: ten items of each class; R-precision cannot tell the first two apart, MAP@R can.
    hits = np.zeros((3, 10), dtype=bool)
    hits[0, 0] = True
    hits[1, 9] = True
    hits[2, :2] = True
    r = np.full(1, 10)
    assert [m.r_precision(row[None], r) for row in hits] == pytest.approx([0.1, 0.1, 0.2])
    assert [m.map_at_r(row[None], r) for row in hits] == pytest.approx([0.1, 0.01, 0.2])


def test_neighbours_beyond_r_do_not_count():
    more = np.hstack([HITS, np.ones((4, 3), dtype=bool)])
    assert m.r_precision(more, RELEVANT) == m.r_precision(HITS, RELEVANT)
    assert m.map_at_r(more, RELEVANT) == m.map_at_r(HITS, RELEVANT)


def test_mean_average_precision():
    ranks = [np.array([0, 2]), np.array([], dtype=np.int64), np.array([4])]
    assert m.mean_average_precision(ranks) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 5) / 2, rel=1e-12)


def test_perfect_and_worst():
    perfect, worst = np.ones((3, 2), dtype=bool), np.zeros((3, 2), dtype=bool)
    relevant = np.full(3, 2)
    for hits, expected in ((perfect, 1.0), (worst, 0.0)):
        assert m.recall_at_k(hits, 1) == m.r_precision(hits, relevant) == m.map_at_r(hits, relevant) == expected
    assert m.mean_average_precision([np.array([0, 1, 2])]) == 1.0


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
