"""k-reciprocal re-ranking against the steps of the paper, one image after the other, in float64."""

import numpy as np
import pytest

from dml.retrieval.evaluator import Evaluator
from dml.retrieval.reranking import KReciprocal, ranks_of_row
from tests.retrieval import oracle

KS = (1, 2, 5)
RANKED = ("recall", "map@r", "r_precision", "map", "mrr")


def distances(x, k1, k2, weight):
    """d* of all images to all, by sets and dense rows."""
    x = x.astype(np.float64)
    n = len(x)
    d = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    d /= d.max(axis=1, keepdims=True)
    near = []
    for p in range(n):
        others = sorted((q for q in range(n) if q != p), key=lambda q: (d[p, q], q))
        near.append([p, *others])

    def mutual(p, k):
        return {q for q in near[p][: k + 1] if p in near[q][: k + 1]}

    v = np.zeros((n, n))
    for p in range(n):
        members = set(mutual(p, k1))
        for q in mutual(p, k1):
            half = mutual(q, int(np.around(k1 / 2)))
            if len(half & mutual(p, k1)) > 2 / 3 * len(half):
                members |= half
        for q in members:
            v[p, q] = np.exp(-d[p, q])
        v[p] /= v[p].sum()
    v = np.array([np.mean([v[q] for q in near[p][:k2]], axis=0) for p in range(n)])
    jaccard = np.array([[1 - np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in v] for a in v])
    return (1 - weight) * jaccard + weight * d


def order(apart, own):
    return [[i for i in np.argsort(row.round(12), kind="stable") if i != o] for row, o in zip(apart, own, strict=True)]


def data(n, seed=0):
    x, y = oracle.embeddings_and_labels("random", n, 4, 8, seed)
    return oracle.normalised(x), y


@pytest.mark.parametrize(("k1", "k2", "weight"), [(8, 3, 0.3), (5, 1, 0.0), (20, 6, 0.3), (1, 2, 1.0)])
def test_among_the_others(k1, k2, weight):
    x, y = data(50)
    evaluator = Evaluator(ks=KS, metrics=RANKED, also={"rerank": KReciprocal(k1=k1, k2=k2, weight=weight)})
    wanted = oracle.scores(np.array(order(distances(x, k1, k2, weight), range(50))), y, y, KS)
    result = evaluator(x, y)
    assert {key: result[f"rerank/{key}"] for key in wanted} == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("inside", [False, True])
def test_among_a_gallery(inside):
    (q, q_labels), (g, g_labels) = data(20, seed=1), data(40, seed=2)
    own = np.full(20, -1)
    if inside:
        own[:8] = np.arange(8) * 2
        g[own[:8]], g_labels[own[:8]] = q[:8], q_labels[:8]
    result = Evaluator(ks=KS, metrics=RANKED, also={"rerank": KReciprocal(k1=8, k2=3)})(
        q, q_labels, gallery=g, gallery_labels=g_labels, own_index=own
    )  # fmt: skip
    outside = np.flatnonzero(own < 0)
    place = own.copy()
    place[outside] = 40 + np.arange(len(outside))
    apart = distances(np.concatenate([g, q[outside]]), 8, 3, 0.3)[place][:, :40]
    wanted = oracle.scores(order(apart, own), q_labels, g_labels, KS)
    assert {key: result[f"rerank/{key}"] for key in wanted} == pytest.approx(wanted, rel=1e-12)


def test_processes_share_the_queries():
    x, y = data(50)
    method = KReciprocal(k1=8, k2=3)

    def blocks(share, add_up=lambda values: values):
        return [ranks.ranks for _, ranks in method.blocks(x_, y, None, None, None, share=share, add_up=add_up)]

    import torch

    x_ = torch.from_numpy(x)
    (whole,) = blocks((0, 1))
    (a,), (b,) = blocks((0, 2)), blocks((1, 2))
    assert (a + b == whole).all() and (a != whole).any()


def test_ranks_of_a_row_and_its_ties():
    rng = np.random.default_rng(0)
    for _ in range(50):
        distance = rng.integers(0, 5, 30).astype(float)
        distance[rng.integers(30)] = np.inf
        positives = np.flatnonzero((rng.random(30) < 0.3) & np.isfinite(distance))
        by = sorted(np.flatnonzero(np.isfinite(distance)), key=lambda i: (distance[i], i))
        assert ranks_of_row(distance, positives).tolist() == [i for i, item in enumerate(by) if item in positives]


def test_embeddings_of_one_value_keep_the_order_of_their_indices():
    x, y = np.ones((12, 3), dtype=np.float32), np.arange(12) % 3
    result = Evaluator(ks=[1], metrics=["recall", "map"], also={"rerank": KReciprocal(k1=3, k2=2, weight=1.0)})(x, y)
    assert result["rerank/recall@1"] == result["recall@1"] and result["rerank/map"] == pytest.approx(result["map"])


@pytest.mark.parametrize(("given", "said"), [({"k1": 0}, "k1=0"), ({"k2": 0}, "k2=0"), ({"weight": 2.0}, "weight=2")])
def test_impossible_options_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        KReciprocal(**given)
    with pytest.raises(ValueError, match=r"k1=20 and k2=6 are too many for 12 images"):
        Evaluator(ks=[1], also={"rerank": KReciprocal()})(*data(12))
