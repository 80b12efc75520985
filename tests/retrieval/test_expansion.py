"""Query expansion and database augmentation against loops, the query itself left out by its index."""

import numpy as np
import pytest
import torch

from dml.retrieval.evaluator import Evaluator
from dml.retrieval.expansion import Augmentation, QueryExpansion
from tests.retrieval import oracle

KS = (1, 2, 5)
RANKED = ("recall", "map@r", "r_precision", "map", "mrr")


def unit(x):
    return x / np.linalg.norm(x)


def expanded(queries, gallery, own, n, weights, alpha=3.0):
    """One query after the other, in float64."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    order, _ = oracle.ranking(queries, gallery, own)
    found = []
    for x, row in zip(queries, order, strict=True):
        total = x.copy()
        for i, item in enumerate(row[:n], 1):
            w = {"average": 1.0, "linear": (n - i) / n, "alpha": max(0.0, x @ gallery[item]) ** alpha}[weights]
            total += w * gallery[item]
        found.append(unit(total))
    return np.array(found).astype(np.float32)


def data(n=60, seed=0, classes=8, twins=False):
    x, y = oracle.embeddings_and_labels("twins" if twins else "random", n, 4, classes, seed)
    return oracle.normalised(x), y


@pytest.mark.parametrize("weights", ["average", "alpha", "linear"])
@pytest.mark.parametrize("twins", [False, True])
def test_among_the_others(weights, twins):
    x, y = data(twins=twins)
    own = np.arange(len(x))
    also = {"qe": QueryExpansion(neighbours=4, weights=weights), "dba": Augmentation(neighbours=4, weights=weights)}
    result = Evaluator(ks=KS, metrics=RANKED, also=also)(x, y)
    moved = expanded(x, x, own, 4, weights)
    np.testing.assert_allclose(also["qe"].expanded(torch.from_numpy(x), torch.from_numpy(x), own), moved, atol=2e-7)
    for name, gallery in (("qe", x), ("dba", moved)):
        wanted = oracle.scores(oracle.ranking(moved, gallery, own)[0], y, y, KS)
        assert {key: result[f"{name}/{key}"] for key in wanted} == pytest.approx(wanted, rel=1e-12)
    plain = oracle.scores(oracle.ranking(x, x, own)[0], y, y, KS)
    assert {key: result[key] for key in plain} == pytest.approx(plain, rel=1e-12)
    assert plain != {key: result[f"qe/{key}"] for key in plain}


def test_a_query_of_a_gallery_of_equal_rows_is_left_out_by_its_index():
    rng = np.random.default_rng(0)
    g = np.repeat(oracle.normalised(rng.normal(size=(4, 3))), 15, axis=0)  # rows of fifteen items
    y, own = rng.integers(0, 3, 60), np.array([3, 17, -1, 59, 30])
    q = oracle.normalised(g[own] + rng.normal(0, 0.2, (5, 3)))
    also = {"qe": QueryExpansion(neighbours=3, weights="average")}
    given = {"gallery": g, "gallery_labels": y, "own_index": own}
    result = Evaluator(ks=KS, metrics=RANKED, also=also)(q, y[own], **given)
    order, _ = oracle.ranking(expanded(q, g, own, 3, "average"), g, own)
    wanted = oracle.scores(order, y[own], y, KS)
    assert {key: result[f"qe/{key}"] for key in wanted} == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("inside", [False, True])
def test_among_a_gallery(inside):
    (q, q_labels), (g, g_labels) = data(30, seed=1), data(50, seed=2)
    own = np.full(30, -1)
    if inside:
        own[:10] = np.arange(20, 30)
        g[20:30], g_labels[20:30] = q[:10], q_labels[:10]
    also = {"qe": QueryExpansion(neighbours=5, weights="linear"), "dba": Augmentation(neighbours=5)}
    result = Evaluator(ks=KS, metrics=RANKED, also=also)(
        q, q_labels, gallery=g, gallery_labels=g_labels, own_index=own
    )  # fmt: skip
    moved = {
        "qe": (expanded(q, g, own, 5, "linear"), g),
        "dba": (q, expanded(g, g, np.arange(50), 5, "alpha")),
    }  # fmt: skip
    for name, sides in moved.items():
        wanted = oracle.scores(oracle.ranking(*sides, own)[0], q_labels, g_labels, KS)
        assert {key: result[f"{name}/{key}"] for key in wanted} == pytest.approx(wanted, rel=1e-12)


def test_what_the_queries_add_to_is_that_of_the_plain_search_and_it_can_be_had_alone():
    x, y = data()
    evaluator = Evaluator(ks=KS, metrics=RANKED, also={"qe": QueryExpansion(neighbours=4)})
    both, kept = evaluator(x, y), evaluator.per_query
    alone = evaluator(x, y, plain=True)
    assert list(alone) == [key for key in both if not key.startswith("qe/")]
    assert all((evaluator.per_query[key] == kept[key]).all() for key in kept)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"neighbours": 0}, "neighbours=0"), ({"weights": "x"}, "weights=x"), ({"alpha": -1.0}, "alpha")],
)
def test_impossible_options_are_refused(given, said):
    for kind in (QueryExpansion, Augmentation):
        with pytest.raises(ValueError, match=said):
            kind(**given)


def test_what_does_not_fit_the_embeddings_is_refused():
    x, y = data(12)
    with pytest.raises(ValueError, match=r"neighbours=12 are more than the 11"):
        Evaluator(ks=[1], also={"qe": QueryExpansion(neighbours=12)})(x, y)
    with pytest.raises(ValueError, match=r"evaluator\.also needs evaluator\.normalize=true"):
        Evaluator(normalize=False, also={"qe": QueryExpansion()})
