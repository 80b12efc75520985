"""Findings against loops over the same neighbours."""

import sys
from types import SimpleNamespace

import numpy as np

from dml.report.findings import Looked, confused, recall_by_class, scores, suspicious
from dml.report.maps import pca, umap
from tests.report.pages import made


def test_scores_are_the_mean_precision_at_the_right_ones():
    rng = np.random.default_rng(0)
    hits, r = rng.random((50, 8)) < 0.4, rng.integers(1, 9, 50)
    expected = [
        sum(row[: i + 1].sum() / (i + 1) for i in range(n) if row[i]) / n for row, n in zip(hits, r, strict=True)
    ]
    np.testing.assert_allclose(scores(hits, r), expected)


def test_confused_pairs_are_those_of_a_count():
    looked = made(classes=6, noise=6).looked
    counts = {}
    for place, query in enumerate(looked.sample):
        a, b = looked.labels[query], looked.labels[looked.near[place, 0]]
        if a != b:
            counts[a, b] = counts.get((a, b), 0) + 1
    found = confused(looked, 100)
    assert {(one.queries, one.found): one.times for one in found} == counts
    assert [one.times for one in found] == sorted(counts.values(), reverse=True)
    for one in found:
        assert looked.labels[one.query] == one.queries and looked.labels[one.image] == one.found and one.of == 12
        place = int(np.flatnonzero(looked.sample == one.query)[0])
        assert looked.near[place, 0] == one.image
    assert len(confused(looked, 2)) == 2


def test_a_wrong_label_and_a_duplicate_are_found():
    x = np.array([[0.0], [1], [2], [3.5], [10], [11], [11.001], [13], [1.2]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])  # the last lies among the others
    d = np.abs(x - x.T)
    np.fill_diagonal(d, np.inf)
    near = np.argsort(d, axis=1, kind="stable")[:, :4]
    distance, positives = np.take_along_axis(d, near, 1), np.bincount(labels)[labels] - 1
    looked = Looked(np.arange(9), near, distance, labels, labels, "ab", np.arange(9), positives)
    doubtful, twice = suspicious(looked, 10)
    assert (doubtful[0].query, doubtful[0].image) in {(1, 8), (8, 1)}
    assert all(8 in pair[:2] for pair in doubtful)
    (pair,) = twice
    assert {pair.query, pair.image} == {5, 6} and pair.closeness < 0.01


def test_recall_by_class_counts():
    labels, rank = np.array([0, 0, 2, 2, 2, 3]), np.array([0, 1, 0, 0, -1, -1])
    assert recall_by_class(labels, rank) == [(3, 0.0, 1), (0, 0.5, 2), (2, 2 / 3, 3)]


def test_pca_keeps_the_variance_and_has_one_sign():
    x = np.random.default_rng(0).normal(size=(200, 5)) * [9, 5, 1, 1, 1]
    plane, share = pca(x)
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T, ddof=0)))[::-1]
    np.testing.assert_allclose(plane.var(axis=0), values[:2])
    np.testing.assert_allclose(share, values[:2].sum() / values.sum())
    np.testing.assert_allclose(pca(-x)[0], -plane, atol=1e-9)  # the direction is the same


def test_umap_says_why_there_is_none(monkeypatch):
    few, many = np.zeros((999, 3)), np.zeros((1000, 3))
    assert umap(few) == (None, "UMAP is drawn from 1,000 images on.")
    assert umap(np.zeros((5000, 2))) == (None, "")  # a plane is a map
    monkeypatch.setitem(sys.modules, "umap", None)
    assert umap(many)[0] is None and "pip install umap-learn" in umap(many)[1]


def test_a_umap_that_fails_costs_its_map_alone(monkeypatch):
    def fail(**_):
        raise RuntimeError("no compiler")

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=fail))
    assert umap(np.zeros((1000, 3))) == (None, "UMAP failed: RuntimeError('no compiler')")
