"""Codes against loops over their definitions, ranks and second look by brute force in float64."""

import math
import threading

import numpy as np
import pytest
import torch

from dml.retrieval.codes import bytes_of, coded, problem_of
from dml.retrieval.evaluator import Evaluator
from tests.retrieval import oracle

KS = (1, 2, 5)
RANKED = ("recall", "map@r", "r_precision", "map", "mrr")
DIM = 16


def data(n, seed=0):
    x, y = oracle.embeddings_and_labels("random", n, DIM, 8, seed)
    return oracle.normalised(x), y


def decode(name, x, g):
    """The queries and what the codes stand for, one number after the other."""
    if name == "float16":
        return x, g.astype(np.float16).astype(np.float32)
    if name == "int8":
        found = np.empty_like(g)
        for d in range(DIM):
            low, high = g[:, d].min(), g[:, d].max()
            steps = [low + (high - low) * np.float32(k) / 255 for k in range(256)]
            found[:, d] = [min(steps, key=lambda c, v=value: abs(c - v)) for value in g[:, d]]
        return x, found
    if name == "binary":
        mean = [math.fsum(g[:, d].tolist()) / len(g) for d in range(DIM)]
        signs = [[[1.0 if v > m else -1.0 for v, m in zip(row, mean, strict=True)] for row in side] for side in (x, g)]
        return np.array(signs[0]), np.array(signs[1])
    return oracle.normalised(x[:, :4]), oracle.normalised(g[:, :4])


def looked_again(order, x, g, size):
    """The first `size` of each ranking by the embeddings themselves."""
    found = []
    for query, row in zip(x.astype(np.float64), order, strict=True):
        near = sorted(row[:size], key=lambda i, q=query: (((g[i].astype(np.float64) - q) ** 2).sum(), i))
        found.append([*near, *row[size:]])
    return found


@pytest.mark.parametrize("name", ["float16", "int8", "binary", "first4"])
@pytest.mark.parametrize("gallery", [False, True])
def test_ranks_in_codes_and_after_a_second_look(name, gallery):
    x, y = data(60, seed=1)
    g, g_labels, own, given = x, y, np.arange(60), {}
    if gallery:
        g, g_labels = data(80, seed=2)
        own = np.full(60, -1)
        own[:5] = np.arange(10, 15)
        given = {"gallery": g, "gallery_labels": g_labels, "own_index": own}
    result = Evaluator(ks=KS, metrics=RANKED, codes=[name], shortlist=7)(x, y, **given)
    queries, codes = decode(name, x, g)
    found = coded(name, torch.from_numpy(x), torch.from_numpy(g), (0, 1), lambda values: values)
    for side, wanted in zip(found, (queries, codes), strict=True):
        np.testing.assert_allclose(side.numpy(), wanted, atol=2e-7)
    title = f"{name}-{bytes_of(name, DIM)}B"
    order, _ = oracle.ranking(found[0].numpy(), found[1].numpy(), own)
    for key, ranking in ((title, order), (f"{title}-reranked", looked_again(order, x, g, 7))):
        wanted = oracle.scores(ranking, y, g_labels, KS)
        assert {metric: result[f"{key}/{metric}"] for metric in wanted} == pytest.approx(wanted, rel=1e-12), key
    plain = Evaluator(ks=KS, metrics=RANKED)(x, y, **given)
    assert {metric: result[metric] for metric in plain} == plain


def masked(order, groups, g_groups):
    """A ranking without the images of the query's own group."""
    return [[i for i in row if g_groups[i] != group] for row, group in zip(order, groups, strict=True)]


@pytest.mark.parametrize("name", ["int8", "binary", "first4"])
@pytest.mark.parametrize("gallery", [False, True])
def test_images_of_a_group_do_not_find_each_other_in_codes_either(name, gallery):
    x, y = data(60, seed=1)
    groups = np.random.default_rng(0).integers(0, 3, 60)
    g, g_labels, g_groups, own, given = x, y, groups, np.arange(60), {}
    if gallery:
        g, g_labels = data(80, seed=2)
        g_groups = np.random.default_rng(1).integers(0, 3, 80)
        own = np.full(60, -1)
        own[:5] = np.arange(10, 15)
        given = {"gallery": g, "gallery_labels": g_labels, "own_index": own, "gallery_groups": g_groups}
    result = Evaluator(ks=KS, metrics=RANKED, codes=[name], shortlist=7)(x, y, groups=groups, **given)
    # Codes are those of the whole gallery, as in an index.
    queries, codes = coded(name, torch.from_numpy(x), torch.from_numpy(g), (0, 1), lambda values: values)
    order = masked(oracle.ranking(queries.numpy(), codes.numpy(), own)[0], groups, g_groups)
    title = f"{name}-{bytes_of(name, DIM)}B"
    for key, ranking in ((title, order), (f"{title}-reranked", looked_again(order, x, g, 7))):
        wanted = oracle.scores(ranking, y, g_labels, KS)
        assert {metric: result[f"{key}/{metric}"] for metric in wanted} == pytest.approx(wanted, rel=1e-12), key


def test_a_product_quantiser_takes_the_nearest_of_256_centroids():
    x, y = data(400)
    result = Evaluator(ks=KS, metrics=RANKED, codes=["pq2"], shortlist=20)(x, y)
    _, decoded = coded("pq2", torch.from_numpy(x), torch.from_numpy(x), (0, 1), lambda values: values)
    for part in (slice(0, 8), slice(8, 16)):
        used = np.unique(decoded.numpy()[:, part], axis=0)
        assert 100 < len(used) <= 256
        for row, code in zip(x[:, part], decoded.numpy()[:, part], strict=True):
            assert ((row - code) ** 2).sum() <= ((used - row) ** 2).sum(axis=1).min() + 1e-6
    order, _ = oracle.ranking(x, decoded.numpy(), np.arange(400))
    for key, ranking in (("pq2-2B", order), ("pq2-2B-reranked", looked_again(order, x, x, 20))):
        wanted = oracle.scores(ranking, y, y, KS)
        assert {metric: result[f"{key}/{metric}"] for metric in wanted} == pytest.approx(wanted, rel=1e-12)


def test_a_shortlist_of_all_gives_the_plain_numbers_and_codes_of_one_value_are_ranked_by_index():
    x, y = data(50)
    result = Evaluator(ks=KS, metrics=RANKED, codes=["binary"], shortlist=999)(x, y)
    for metric in ("map", "recall@1"):
        assert result[f"binary-2B-reranked/{metric}"] == pytest.approx(result[metric])
    same = Evaluator(ks=KS, metrics=RANKED, codes=["binary", "int8"], shortlist=3)(np.ones((50, DIM)), y)
    for title in ("binary-2B", "binary-2B-reranked", "int8-16B", "int8-16B-reranked"):
        for metric in ("map", "recall@5"):
            assert same[f"{title}/{metric}"] == pytest.approx(same[metric])


def test_processes_share_the_work_and_one_of_them_learns():
    x, y = data(300)
    given = {"ks": KS, "metrics": RANKED, "codes": ["pq2", "binary"], "shortlist": 9}
    whole = Evaluator(**given)(x, y)
    added, barrier = [None, None], threading.Barrier(2)
    results = [None, None]

    def process(r):
        def add_up(values):
            added[r] = values
            barrier.wait()
            total = added[0] + added[1]
            barrier.wait()
            return total

        results[r] = Evaluator(ks=KS, metrics=RANKED, codes=["pq2", "binary"], shortlist=9)(
            x, y, share=(r, 2), add_up=add_up
        )

    threads = [threading.Thread(target=process, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == pytest.approx(whole)


def test_bytes():
    sizes = {name: bytes_of(name, 100) for name in ("float16", "int8", "binary", "pq20", "first25")}
    assert sizes == {"float16": 200, "int8": 100, "binary": 13, "pq20": 20, "first25": 100}


def test_what_is_not_possible():
    with pytest.raises(ValueError, match=r"evaluator\.codes: float8 is no code: there are float16, int8, binary, pqM"):
        Evaluator(codes=["float8"])
    with pytest.raises(ValueError, match=r"evaluator\.shortlist=0"):
        Evaluator(shortlist=0)
    with pytest.raises(ValueError, match=r"evaluator\.codes needs evaluator\.normalize=true"):
        Evaluator(normalize=False, codes=["int8"])
    assert "3 equal parts" in problem_of("pq3", 16, 999) and "256 images" in problem_of("pq2", 16, 255)
    assert "more than the 16" in problem_of("first17", 16, 999) and problem_of("first16", 16, 9) is None
    x, y = data(50)
    with pytest.raises(
        ValueError, match=r"evaluator\.codes: pq2 needs 256 images to learn from, and the gallery has 50"
    ):
        Evaluator(codes=["pq2"])(x, y)
