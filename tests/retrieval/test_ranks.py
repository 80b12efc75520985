"""Exact ranks, counted and searched, against the brute force of tests/retrieval/oracle.py."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from dml.retrieval import ranks as counting
from dml.retrieval import tiles
from dml.retrieval.ranks import positive_ranks
from dml.retrieval.search import searched_ranks
from dml.retrieval.tiles import squared_distances
from tests.retrieval import oracle

KINDS = ["random", "grid", "two_values", "twins", "identical"]
SIZES = [(120, 3, 10), (97, 16, 5), (40, 1, 4), (60, 2, 60), (2, 3, 1)]


def counted(queries, query_labels, gallery=None, gallery_labels=None, **given):
    x, g = (None if each is None else torch.tensor(each, dtype=torch.float32) for each in (queries, gallery))
    return positive_ranks(x, query_labels, g, gallery_labels, **given)


@pytest.fixture(
    params=["whole", "tiles", "listed tiles", "counted tiles", "sorted tiles", "merged", "apart", "blocks", "searched"]
)
def ranked(request, monkeypatch):
    """Each way to the ranks: one tile, many, many all of one kind, equal rows as one or not, in blocks, and FAISS."""
    if request.param == "merged":
        monkeypatch.setattr(counting, "_EQUAL", -1)
        monkeypatch.setattr(counting, "_FEWER", 1)
    if request.param == "apart":
        monkeypatch.setattr(counting, "_EQUAL", np.inf)
    if request.param == "blocks":
        monkeypatch.setattr(counting, "_PAIRS", 40)
        monkeypatch.setattr(counting, "_LEAST", 3)
    if request.param != "whole":
        monkeypatch.setattr(counting, "_TILE", {"cpu": 32})
        monkeypatch.setattr(tiles, "_AT_ONCE", 5000)
    if request.param == "listed tiles":
        monkeypatch.setattr(tiles, "_LISTED", np.inf)
    if request.param in ("counted tiles", "sorted tiles"):
        monkeypatch.setattr(tiles, "_LISTED", -1)
    if request.param == "sorted tiles":
        monkeypatch.setattr(tiles, "_FEW", 0)
    return searched_ranks if request.param == "searched" else counted


def assert_ranks(found, expected):
    assert found.counts.tolist() == [len(each) for each in expected]
    for got, wanted in zip(np.split(found.ranks, found.counts.cumsum()[:-1]), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dim", "classes"), SIZES)
def test_items_among_the_others(ranked, kind, n, dim, classes):
    x, y = oracle.embeddings_and_labels(kind, n, dim, classes)
    order, _ = oracle.ranking(x, x, np.arange(n))
    assert_ranks(ranked(x, y), oracle.ranks(order, y, y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dim", "classes"), SIZES)
def test_queries_among_a_gallery(ranked, kind, n, dim, classes):
    # The gallery holds a copy of each query, which is not left out, and lacks classes of some queries.
    q, q_labels = oracle.embeddings_and_labels(kind, 45, dim, classes + 3, seed=1)
    g, g_labels = oracle.embeddings_and_labels(kind, n, dim, classes, seed=2)
    g[: min(n, 45)] = q[: min(n, 45)]
    order, _ = oracle.ranking(q, g)
    assert_ranks(ranked(q, q_labels, g, g_labels), oracle.ranks(order, q_labels, g_labels))


@pytest.mark.parametrize("ranked", ["whole", "tiles", "sorted tiles", "merged", "apart"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_positive_only(ranked, kind):
    x, y = oracle.embeddings_and_labels(kind, 120, 3, 30)
    order, _ = oracle.ranking(x, x, np.arange(120))
    assert_ranks(ranked(x, y, nearest_only=True), [each[:1] for each in oracle.ranks(order, y, y)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gallery", [False, True])
def test_parts_add_up(monkeypatch, kind, gallery):
    monkeypatch.setattr(counting, "_TILE", {"cpu": 32})
    x, y = oracle.embeddings_and_labels(kind, 120, 3, 10)
    given = (x[:90], y[:90], x, y) if gallery else (x, y)
    whole, parts = counted(*given), []
    for part in range(3):
        counted(*given, share=(part, 3), add_up=lambda counts: parts.append(counts) or counts)
    assert all(part.any() for part in parts) or kind in ("identical", "two_values")  # two rows: nothing between them
    assert_ranks(
        counted(*given, share=(0, 3), add_up=lambda counts: sum(parts)),
        np.split(whole.ranks, whole.counts.cumsum()[:-1]),
    )


def test_duplicates_do_not_hide_the_query_itself(ranked):
    assert_ranks(ranked(np.zeros((4, 3), np.float32), np.array([0, 1, 1, 0])), [[2], [1], [1], [0]])


HARD = {
    # Float32's |x|^2 + |y|^2 - 2xy has no digit left of these distances.
    "far_from_the_origin": lambda x: x + 1000,
    "one_tight_cluster": lambda x: oracle.normalised(x[:1]) + 1e-3 * x / x.shape[1] ** 0.5,
    "tight_clusters": lambda x: oracle.normalised(x[np.arange(len(x)) % 4]) + 1e-4 * x / x.shape[1] ** 0.5,
    "tighter_clusters": lambda x: oracle.normalised(x[np.arange(len(x)) % 4]) + 1e-7 * x / x.shape[1] ** 0.5,
    # The largest norm must not decide how well small distances are told apart.
    "one_outlier": lambda x: np.vstack([x[:1] * 1e4, x[1:]]),
    "tiny": lambda x: x * 1e-22,
    "huge": lambda x: x * 1e22,
    "signs": lambda x: np.sign(x[:, :16]),
    "repeated": lambda x: x[np.arange(len(x)) // 7],
}


@pytest.mark.parametrize("kind", HARD)
def test_ranks_are_exact_where_float32_is_not(ranked, kind):
    x, y = oracle.embeddings_and_labels("random", 300, 512, 30)
    x = HARD[kind](x).astype(np.float32)
    order, _ = oracle.ranking(x, x, np.arange(300))
    assert_ranks(ranked(x, y), oracle.ranks(order, y, y))


def test_distances_far_below_the_largest_norm_are_told_apart(ranked):
    # 0.5 and 1 millionth of the largest norm: far from equal to 1e-11 of it, as the documentation has it.
    gallery, labels = np.array([[1.0], [1e-6], [5e-7]], np.float32), np.array([0, 1, 2])
    assert_ranks(ranked(np.zeros((3, 1), np.float32), labels, gallery, labels), [[2], [1], [0]])


def test_products_that_float32_rounds_one_way_are_mended(ranked):
    # A product one by one loses all small terms, 2**-23 each beside 4: more than what sets the two distances apart.
    query = np.full(2050, 2.0**-11.5, np.float32)
    query[:4], query[2048:] = 1, 0
    positive, negative = query.copy(), query.copy()
    positive[2048], negative[2049] = 2**-6.5, 2**-7
    gallery, labels = np.stack([positive, -positive, negative, -negative]), np.arange(4)
    assert_ranks(ranked(query[None], labels[:1], gallery, labels), [[1]])


def test_norms_that_float64_rounds_are_told_apart(ranked):
    # A sum one by one loses the positive's small squares, 2**-54 each, and keeps the negative's one of half their sum.
    positive, negative = np.full(2048, 2.0**-27, np.float32), np.zeros(2048, np.float32)
    positive[:4] = negative[:4] = 1
    negative[4] = (2044 * 2.0**-54 / 2) ** 0.5
    gallery, labels = np.stack([positive, -positive, negative, -negative]), np.arange(4)
    assert_ranks(ranked(np.zeros((1, 2048), np.float32), labels[:1], gallery, labels), [[2]])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("listed", "few"), [(np.inf, 8), (-1, 8), (-1, 0)])
def test_entries_at_an_edge_are_counted_once(monkeypatch, listed, few, turned):
    monkeypatch.setattr(tiles, "_LISTED", listed)
    monkeypatch.setattr(tiles, "_FEW", few)
    rng = np.random.default_rng(0)
    s = torch.from_numpy(rng.integers(-3, 4, (5, 40)).astype(np.float32))
    s = s.T.contiguous().T if turned else s
    lower = torch.tensor([[2, 0, -2], [1, 1, -1], [3, -4, -torch.inf], [-torch.inf] * 3, [0, -1, -torch.inf]])
    upper = lower + torch.tensor([[0], [1], [2], [0], [4]])
    real = lower > -torch.inf
    found = tiles.compare(s, lower, upper)
    assert torch.equal(found.above[real], (s[:, None] > upper[..., None]).sum(dim=2)[real])
    open_ = (s[:, None] > lower[..., None]) & (s[:, None] <= upper[..., None]) & real[..., None]
    assert found.open == open_.sum()
    again = torch.zeros_like(open_)
    for row, edge, which, column in found.parts:
        again[row[which], edge[which], column] = True
        assert len(which) == len(column)
    assert torch.equal(again, open_)


@pytest.mark.parametrize("ordered", [True, False])
def test_more_edges_than_entries_are_compared_the_other_way_round(monkeypatch, ordered):
    monkeypatch.setattr(tiles, "_LISTED", -1)
    rng = np.random.default_rng(0)
    s = torch.from_numpy(rng.integers(-20, 20, (6, 30)).astype(np.float32))
    s[2, 4] = -torch.inf
    lower = torch.from_numpy(-np.sort(-rng.integers(-20, 20, (6, 70)).astype(np.float32), axis=1))
    lower[:, 60:] = -torch.inf
    upper = lower + (1 if ordered else torch.from_numpy(rng.integers(0, 9, (6, 70)).astype(np.float32)))
    found, real = tiles.compare(s, lower, upper), lower > -torch.inf
    assert torch.equal(found.above[real], (s[:, None] > upper[..., None]).sum(dim=2)[real])
    assert found.open == int(((s[:, None] > lower[..., None]) & (s[:, None] <= upper[..., None]))[real].sum())


def test_positives_beyond_the_depth_come_last():
    x, y = oracle.embeddings_and_labels("random", 60, 4, 6)
    whole, some = searched_ranks(x, y), searched_ranks(x, y, depth=9)
    np.testing.assert_array_equal(some.ranks, np.where(whole.ranks < 9, whole.ranks, 60))
    np.testing.assert_array_equal(some.counts, whole.counts)


def test_inputs_may_be_strided_and_are_left_alone(ranked):
    x, y = oracle.embeddings_and_labels("grid", 50, 4, 5)
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    kept = strided.copy()
    np.testing.assert_array_equal(ranked(strided, y).ranks, ranked(x, y).ranks)
    np.testing.assert_array_equal(strided, kept)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 64, 100])
def test_squared_distances_are_those_of_differences(dim):
    a, b = torch.randn(2, 7, dim)
    expected = (a.double() - b.double()).square().sum(dim=1)
    torch.testing.assert_close(squared_distances(a, b), expected, rtol=1e-14, atol=0)
    # The same bits in any company.
    assert torch.equal(squared_distances(a, b)[3:4], squared_distances(a[3:4], b[3:4]))


def test_a_precision_that_was_set_does_not_matter():
    x, y = oracle.embeddings_and_labels("random", 300, 64, 30)
    expected = counted(x, y)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            np.testing.assert_array_equal(counted(x, y).ranks, expected.ranks)
    finally:
        torch.set_float32_matmul_precision(kept)


# All distances of 20,000 items are 1.6 GB in float32.
MEMORY = """
import resource, faiss, numpy as np, torch
from dml.retrieval.ranks import positive_ranks
from dml.retrieval.search import Search
torch.set_num_threads(1), faiss.omp_set_num_threads(1)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((20_000, 8)).astype(np.float32), rng.integers(0, 2_000, 20_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
positive_ranks(torch.from_numpy(x), y)
Search(x)(x, 8, np.arange(20_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_square():
    # In a process of its own: the largest resident size depends on what the heap held before.
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400_000  # KiB
