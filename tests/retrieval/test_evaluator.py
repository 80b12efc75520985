"""The evaluator against the loops of tests/retrieval/oracle.py, and what it refuses."""

import numpy as np
import pytest
import torch

from dml.retrieval import metrics
from dml.retrieval.evaluator import BACKENDS, METRICS, Evaluator
from dml.retrieval.expansion import Augmentation, QueryExpansion
from dml.retrieval.reranking import KReciprocal
from tests.retrieval import oracle

KS = (1, 2, 5)
RANKED = ("recall", "map@r", "r_precision", "map", "mrr")


@pytest.mark.parametrize("kind", ["random", "grid", "two_values", "twins", "identical"])
@pytest.mark.parametrize("classes", [2, 8, 70])  # of 70 classes, many have a single image
def test_items_among_the_others(kind, classes):
    x, y = oracle.embeddings_and_labels(kind, 90, 3, classes)
    order, _ = oracle.ranking(x, x, np.arange(90))
    result = Evaluator(ks=KS, metrics=RANKED, normalize=False)(x, y)
    assert result == pytest.approx(oracle.scores(order, y, y, KS), rel=1e-12)
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize("kind", ["random", "grid", "two_values", "twins", "identical"])
@pytest.mark.parametrize("classes", [2, 40])
def test_queries_among_a_gallery(kind, classes):
    # Query classes that the gallery lacks, gallery classes that no query has, and queries that the gallery holds too.
    q, q_labels = oracle.embeddings_and_labels(kind, 60, 3, classes, seed=1)
    g, g_labels = oracle.embeddings_and_labels(kind, 80, 3, classes, seed=2)
    q_labels += 1
    g[:10] = q[:10]
    order, _ = oracle.ranking(q, g)
    result = Evaluator(ks=KS, metrics=RANKED, normalize=False)(q, q_labels, gallery=g, gallery_labels=g_labels)
    assert result == pytest.approx(oracle.scores(order, q_labels, g_labels, KS), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_each_query_adds_to_the_means(backend):
    x, y = oracle.embeddings_and_labels("random", 90, 3, 40)  # some classes have a single image
    order, _ = oracle.ranking(x, x, np.arange(90))
    evaluator = Evaluator(ks=KS, metrics=RANKED, normalize=False, backend=backend)
    evaluator(x, y)
    found = evaluator.per_query
    assert set(found) == {"first_rank", "map@r", "r_precision", "map"}
    for q, places in enumerate(oracle.ranks(order, y, y)):
        if len(places):
            alone = oracle.scores(order[q : q + 1], y[q : q + 1], y, KS)
            assert found["first_rank"][q] == places[0]
            assert {n: found[n][q] for n in ("map@r", "r_precision", "map")} == pytest.approx(
                {n: alone[n] for n in ("map@r", "r_precision", "map")}, rel=1e-6
            )
        else:
            assert found["first_rank"][q] == -1 and all(np.isnan(found[n][q]) for n in found if n != "first_rank")
    Evaluator(metrics=["nmi"])(x, y)
    assert Evaluator(metrics=["nmi"]).per_query == {}


def test_embeddings_are_normalised_unless_told_otherwise():
    x, y = oracle.embeddings_and_labels("random", 90, 4, 8)
    x *= np.random.default_rng(1).uniform(0.1, 50, (90, 1))
    own = np.arange(90)
    expected = {
        normalize: oracle.scores(oracle.ranking(z, z, own)[0], y, y, KS)
        for normalize, z in ((True, oracle.normalised(x)), (False, x.astype(np.float32)))
    }
    assert expected[True] != expected[False]
    assert Evaluator(ks=KS, metrics=RANKED)(x, y) == pytest.approx(expected[True], rel=1e-12)
    for normalize in (True, False):
        result = Evaluator(ks=KS, metrics=RANKED, normalize=normalize)(x, y)
        assert result == pytest.approx(expected[normalize], rel=1e-12)


def test_queries_and_gallery_are_both_normalised():
    q, q_labels = oracle.embeddings_and_labels("random", 40, 4, 5, seed=1)
    g, g_labels = oracle.embeddings_and_labels("random", 50, 4, 5, seed=2)
    order, _ = oracle.ranking(oracle.normalised(q), oracle.normalised(g))
    result = Evaluator(ks=KS, metrics=RANKED)(q * 9, q_labels, gallery=g * 0.1, gallery_labels=g_labels)
    assert result == pytest.approx(oracle.scores(order, q_labels, g_labels, KS), rel=1e-12)


def test_directions_that_become_equal_are_ties():
    x, y = oracle.embeddings_and_labels("random", 30, 3, 4)
    z = np.vstack([x, 2 * x, 0.25 * x])
    labels = np.concatenate([y, (y + 1) % 4, y])
    order, _ = oracle.ranking(*[np.tile(oracle.normalised(x), (3, 1))] * 2, np.arange(90))
    result = Evaluator(ks=KS, metrics=RANKED)(z, labels)
    assert result == pytest.approx(oracle.scores(order, labels, labels, KS), rel=1e-12)


def test_by_hand():
    # On a line: class 0 at 0, 1 and 4, class 1 at 2 and 6, class 2 alone at 9.
    x, y = np.array([[0.0], [1.0], [4.0], [2.0], [6.0], [9.0]]), np.array([0, 0, 0, 1, 1, 2])
    # Rankings, as hits: 0 -> 1 2 4 6 9: 1 0 1 0 0; 1 -> 0 2 4 6 9 (0 before 2, a tie): 1 0 1 0 0;
    # 4 -> 2 6 1 0 9 (2 before 6, a tie: index 3 before 4): 0 0 1 1 0; 2 -> 1 0 4 6 9 (0 before 4): 0 0 0 1 0;
    # 6 -> 4 9 2 1 0: 0 0 1 0 0; 9: none.
    result = Evaluator(ks=(1, 3), metrics=RANKED, normalize=False)(x, y)
    assert result == pytest.approx(
        {
            "recall@1": 2 / 6,
            "recall@3": 4 / 6,
            "map@r": (0.5 + 0.5 + 0 + 0 + 0) / 5,
            "r_precision": (0.5 + 0.5 + 0 + 0 + 0) / 5,
            "map": ((1 + 2 / 3) / 2 * 2 + (1 / 3 + 2 / 4) / 2 + 1 / 4 + 1 / 3) / 5,
            "mrr": (1 + 1 + 1 / 3 + 1 / 4 + 1 / 3) / 5,
        },
        rel=1e-12,
    )


def test_the_only_image_of_a_class_is_a_miss_as_a_query_and_stays_in_the_gallery():
    # On a line: class 0 at 0 and 1, class 1 alone between them, the nearest of both.
    x, y = np.array([[0.0], [1.0], [0.4]]), [0, 0, 1]
    result = Evaluator(ks=(1, 2), metrics=RANKED, normalize=False)(x, y)
    found = {"recall@1": 0, "recall@2": pytest.approx(2 / 3), "map@r": 0, "r_precision": 0, "map": 0.5, "mrr": 0.5}
    assert result == found
    without = Evaluator(ks=(1,), metrics=RANKED, normalize=False)(x[:2], y[:2])
    assert set(without.values()) == {1.0}


def test_identical_embeddings_are_ranked_by_index():
    y = np.array([0, 1, 0, 1])
    result = Evaluator(ks=(1, 2, 3), metrics=RANKED)(np.ones((4, 2)), y)
    # 0 -> 1 2 3, 1 -> 0 2 3, 2 -> 0 1 3, 3 -> 0 1 2: the positives stand at 1, 2, 0 and 1.
    assert result["recall@1"] == 1 / 4 and result["recall@2"] == 3 / 4 and result["recall@3"] == 1
    assert result["map"] == pytest.approx((1 / 2 + 1 / 3 + 1 + 1 / 2) / 4)


def test_zero_embeddings_can_be_normalised():
    result = Evaluator(ks=(1,), metrics=RANKED)(np.zeros((4, 2)), [0, 0, 1, 1])
    assert all(0 <= value <= 1 for value in result.values())


def test_all_metrics_in_their_order_and_only_those_asked_for():
    x, y = oracle.embeddings_and_labels("random", 60, 4, 5)
    everything = Evaluator()(x, y)
    recalls = ["recall@1", "recall@2", "recall@4", "recall@8"]
    assert list(everything) == [*recalls, "map@r", "r_precision", "map", "mrr", "nmi"]
    assert all(0 <= value <= 1 for value in everything.values())
    everything = Evaluator(metrics=METRICS)(x, y)
    precisions = ["precision@1", "precision@2", "precision@4", "precision@8"]
    assert list(everything) == [*recalls, *precisions, "map@r", "r_precision", "map", "mrr", "nmi", "ami"]
    for name in METRICS:
        keys = [key for key in everything if name in (key, key.partition("@")[0]) and not key == "map@r" != name]
        assert Evaluator(metrics=(name,))(x, y) == {key: everything[key] for key in keys}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("words", [False, True])
def test_metrics_of_each_class_are_means_over_its_queries(backend, words):
    x, numbers = oracle.embeddings_and_labels("grid", 90, 3, 40)  # some classes have a single image
    names = ["precision", *RANKED]
    y = [f"class {c}" for c in numbers] if words else numbers.tolist()
    evaluator = Evaluator(ks=KS, metrics=names, normalize=False, backend=backend)
    metrics, classes = evaluator(x, y, return_per_class=True)
    assert metrics == evaluator(x, y) and set(classes) == set(metrics)
    order, _ = oracle.ranking(x, x, np.arange(90))
    hits = numbers[order] == numbers[:, None]
    for k in KS:
        assert metrics[f"precision@{k}"] == pytest.approx(hits[:, :k].mean(), rel=1e-12)
    for name, values in classes.items():
        assert set(values) == set(y)
        for label, value in values.items():
            mine = [i for i in range(90) if y[i] == label]
            if name.startswith("precision@"):
                expected = hits[mine, : int(name[10:])].mean()
            elif len(mine) == 1:
                expected = 0 if name.startswith("recall") else np.nan
            else:
                expected = oracle.scores(order[mine], numbers[mine], numbers, KS)[name]
            assert value == pytest.approx(expected, rel=1e-6, nan_ok=True), (name, label)


def test_ami_is_adjusted_for_chance():
    x, y = oracle.embeddings_and_labels("random", 300, 4, 60)  # labels say nothing of places
    found = Evaluator(metrics=["nmi", "ami"])(x, y)
    assert found["nmi"] > 0.5 and abs(found["ami"]) < 0.1
    assert Evaluator(metrics=["ami"])(np.repeat(np.eye(3), 5, axis=0), np.repeat([0, 1, 2], 5)) == {"ami": 1.0}


@pytest.mark.parametrize("kind", ["random", "grid", "two_values", "twins", "identical"])
@pytest.mark.parametrize("gallery", [False, True])
def test_both_backends_give_the_same_numbers(kind, gallery):
    x, y = oracle.embeddings_and_labels(kind, 90, 3, 8)
    given = {"gallery": x[:70], "gallery_labels": y[:70]} if gallery else {}
    for names in (RANKED, ("recall",), ("r_precision", "map@r"), ("recall", "map@r"), ("mrr",)):
        counted, searched = (Evaluator(ks=KS, metrics=names, backend=backend)(x, y, **given) for backend in BACKENDS)
        assert counted == searched


def test_processes_share_the_work(monkeypatch):
    from dml.retrieval import ranks

    monkeypatch.setattr(ranks, "_TILE", {"cpu": 16})
    x, y = oracle.embeddings_and_labels("grid", 90, 3, 8)
    evaluator = Evaluator()
    parts = [[], [], []]
    for process in range(3):  # each alone first, to see what it adds
        evaluator(x, y, share=(process, 3), add_up=lambda each, own=parts[process]: own.append(each) or each)
    totals = [sum(each) for each in zip(*parts, strict=True)]
    for process in range(3):
        given = iter(totals)
        assert evaluator(x, y, share=(process, 3), add_up=lambda each, given=given: next(given)) == evaluator(x, y)


def test_nmi_is_that_of_the_normalised_embeddings():
    x, y = oracle.embeddings_and_labels("random", 60, 4, 5)
    x[::2] *= 30
    assert Evaluator(metrics=("nmi",), normalize=False)(x, y)["nmi"] == metrics.nmi(x, y)
    # Clusters in direction only.
    x, y = np.eye(3)[np.arange(30) % 3] * np.linspace(1, 100, 30)[:, None], np.arange(30) % 3
    assert Evaluator(metrics=("nmi",))(x, y)["nmi"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_and_arrays_give_the_same(dtype):
    x, y = oracle.embeddings_and_labels("random", 50, 4, 5)
    tensor = torch.tensor(x, dtype=dtype, requires_grad=True)
    expected = Evaluator()(tensor.detach().float().numpy(), y)
    kept = tensor.detach().clone()
    assert Evaluator()(tensor, torch.tensor(y)) == expected
    assert Evaluator()(tensor, y.tolist()) == expected
    assert torch.equal(tensor, kept)
    own = torch.arange(50)
    # A metric a query is left out of is a mean in another order.
    ranked, given = Evaluator(metrics=RANKED), {"gallery": tensor, "gallery_labels": torch.tensor(y), "own_index": own}
    assert ranked(tensor, torch.tensor(y), **given) == {name: v for name, v in expected.items() if name != "nmi"}


def test_inputs_are_left_alone():
    x, y = oracle.embeddings_and_labels("random", 50, 4, 5)
    kept = x.copy()
    Evaluator()(x, y)
    np.testing.assert_array_equal(x, kept)


def test_two_calls_agree():
    x, y = oracle.embeddings_and_labels("twins", 80, 4, 5)
    evaluator = Evaluator()
    assert evaluator(x, y) == evaluator(x, y)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"metrics": ("recall", "accuracy")}, r"evaluator\.metrics\b.*accuracy"),
        ({"metrics": ()}, r"evaluator\.metrics\b"),
        ({"ks": (1, 0)}, r"evaluator\.ks\b"),
        ({"ks": (-1,)}, r"evaluator\.ks\b"),
        ({"ks": ()}, r"evaluator\.ks\b"),
        ({"ks": (1, 1.5)}, r"evaluator\.ks=\(1, 1\.5\) is not possible"),
        ({"ks": ("a",)}, r"evaluator\.ks\b"),
        ({"ks": "12"}, r"evaluator\.ks=12 is not possible"),
        ({"ks": (True,)}, r"evaluator\.ks=\(True,\) is not possible"),
        ({"ks": np.array([1.0])}, r"evaluator\.ks\b"),
        ({"ks": 5}, r"evaluator\.ks=5 is not possible"),
        ({"backend": "pytorch"}, r"evaluator\.backend=pytorch is not possible: .*ranks, faiss"),
        ({"nmi_restarts": 0}, r"evaluator\.nmi_restarts=0 is not possible"),
    ],
)
def test_impossible_options_are_refused(options, key):
    with pytest.raises(ValueError, match=key):
        Evaluator(**options)


def test_ks_beyond_the_gallery_are_refused():
    x, y = np.eye(5), [0, 0, 1, 1, 1]
    assert Evaluator(ks=(4,))(x, y)["recall@4"] == 1
    with pytest.raises(ValueError, match=r"evaluator\.ks\b.*5\b"):
        Evaluator(ks=(1, 5))(x, y)
    g = x[::-1]
    assert Evaluator(ks=(5,))(x, y, gallery=g, gallery_labels=y)["recall@5"] == 1
    with pytest.raises(ValueError, match=r"evaluator\.ks\b.*6\b"):
        Evaluator(ks=(6,))(x, y, gallery=g, gallery_labels=y)
    with pytest.raises(ValueError, match=r"evaluator\.ks\b.*1 to 4\b"):  # one of them is in the gallery
        Evaluator(ks=(5,))(x, y, gallery=g, gallery_labels=y, own_index=[4, -1, -1, -1, -1])
    # Without recall the Ks do not matter.
    assert set(Evaluator(ks=(99,), metrics=("map", "map@r"))(x, y)) == {"map", "map@r"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(bad):
    x, y = oracle.embeddings_and_labels("random", 20, 4, 3)
    broken = x.copy()
    broken[3, 1] = broken[3, 2] = broken[7, 0] = bad
    with pytest.raises(ValueError, match="2 of 20 embeddings are NaN or infinite"):
        Evaluator()(broken, y)
    with pytest.raises(ValueError, match="2 of 20 embeddings are NaN or infinite"):
        Evaluator()(x, y, gallery=broken, gallery_labels=y)


@pytest.mark.parametrize(
    ("x", "y"), [((4, 3), (3,)), ((4,), (4,)), ((4, 3, 1), (4,)), ((4, 3), (4, 1)), ((0, 3), (0,))]
)
def test_embeddings_that_do_not_fit_the_labels_are_refused(x, y):
    with pytest.raises(ValueError, match="embeddings"):
        Evaluator()(np.ones(x), np.zeros(y, dtype=int))


def test_half_a_gallery_is_refused():
    with pytest.raises(ValueError, match="gallery= needs gallery_labels="):
        Evaluator()(np.eye(4), [0, 0, 1, 1], gallery=np.eye(4))
    with pytest.raises(ValueError, match="gallery_labels= needs gallery="):
        Evaluator()(np.eye(4), [0, 0, 1, 1], gallery_labels=[0, 0, 1, 1])
    with pytest.raises(ValueError, match="own_index= needs gallery="):
        Evaluator()(np.eye(4), [0, 0, 1, 1], own_index=[0, 1, 2, 3])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([0, 1, 2], r"4 whole numbers.*\[3\]"),
        ([[0, 1, 2, 3]], r"4 whole numbers.*\[1, 4\]"),
        ([0, 1, 2, 5], r"from -1 \(none\) to 4, not 0 to 5"),
        ([0, 1, -2, 2], r"from -1 \(none\) to 4, not -2 to 2"),
        ([0.0, 1.0, 2.0, 3.0], "4 whole numbers.*float64"),
        (["a"] * 4, "4 whole numbers"),
    ],
)
def test_an_own_index_that_does_not_fit_is_refused(own, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(ks=(1,))(
            np.eye(4), [0, 0, 1, 1], gallery=np.ones((5, 4)), gallery_labels=[0, 0, 1, 1, 1], own_index=own
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["random", "grid", "two_values", "twins", "identical"])
@pytest.mark.parametrize("classes", [2, 40])
def test_queries_that_are_in_the_gallery_do_not_find_themselves(monkeypatch, backend, kind, classes):
    from dml.retrieval import ranks

    monkeypatch.setattr(ranks, "_TILE", {"cpu": 16})
    g, g_labels = oracle.embeddings_and_labels(kind, 80, 3, classes, seed=2)
    rng = np.random.default_rng(0)
    own = rng.integers(0, 80, 60)
    q, q_labels = g[own].copy(), g_labels[own].copy()
    other = rng.random(60) < 0.3  # these are not in the gallery
    q[other] += rng.standard_normal((60, 3)).astype(np.float32)[other]
    own[other] = -1
    own[5], q_labels[7] = 11, 50  # whatever the row and the label say, the index decides
    order, _ = oracle.ranking(q, g, own)
    expected = oracle.scores(order, q_labels, g_labels, KS)
    for names in (RANKED, ("recall",), ("map@r",)):
        evaluator = Evaluator(ks=KS, metrics=names, normalize=False, backend=backend)
        result = evaluator(q, q_labels, gallery=g, gallery_labels=g_labels, own_index=own)
        assert result == pytest.approx({name: expected[name] for name in result}, rel=1e-12)
    if backend == "ranks":
        evaluator, parts = Evaluator(ks=KS, metrics=RANKED, normalize=False), [[], [], []]
        given = {"gallery": g, "gallery_labels": g_labels, "own_index": own}
        for process in range(3):
            add_up = lambda each, kept=parts[process]: kept.append(each) or each  # noqa: E731
            evaluator(q, q_labels, **given, share=(process, 3), add_up=add_up)
        totals = iter([sum(each) for each in zip(*parts, strict=True)])
        shared = evaluator(q, q_labels, **given, share=(1, 3), add_up=lambda _: next(totals))
        assert shared == evaluator(q, q_labels, **given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_vectors_that_are_queries_and_gallery_find_nothing_special(backend):
    x, y = oracle.embeddings_and_labels("random", 300, 8, 30)
    evaluator = Evaluator(ks=KS, metrics=RANKED, backend=backend)
    alone, other = evaluator(x, y), np.random.default_rng(1).permutation(300)
    given = {"gallery": x[other], "gallery_labels": y[other], "own_index": np.argsort(other)}
    assert evaluator(x, y, **given) == pytest.approx(alone, rel=1e-12)
    assert alone["recall@1"] < 0.1


def test_queries_that_are_the_gallery_unsaid_are_told():
    x, y = oracle.embeddings_and_labels("random", 30, 8, 5)
    evaluator = Evaluator(ks=(1,), metrics=("recall",))
    for g in (x, x.astype(np.float64), torch.tensor(x), 2 * x):
        with pytest.warns(UserWarning, match="same 30 embeddings.*own_index="):
            assert evaluator(x, y, gallery=g, gallery_labels=y) == {"recall@1": 1}
    with pytest.warns(UserWarning, match="same 30 embeddings"):  # as of a source whose images are copies
        evaluator(x, y, gallery=x, gallery_labels=y, own_index=[-1] * 30)


def test_queries_that_are_somewhere_in_the_gallery_unsaid_are_told():
    x, y = oracle.embeddings_and_labels("random", 30, 8, 5)
    g, g_labels = np.vstack([x + 1, x[::-1]]), np.concatenate([y, y[::-1]])
    with pytest.warns(UserWarning, match=r"each of the 30 queries has an equal embedding.*own_index="):
        assert Evaluator(ks=(1,), metrics=("recall",))(x, y, gallery=g, gallery_labels=g_labels) == {"recall@1": 1}


@pytest.mark.filterwarnings("error")
def test_other_galleries_are_not_told():
    x, y = oracle.embeddings_and_labels("random", 30, 8, 5)
    evaluator = Evaluator(ks=(1,), metrics=("recall",))
    evaluator(x, y, gallery=x, gallery_labels=y, own_index=range(30))
    evaluator(x, y, gallery=x + 0.1, gallery_labels=y)
    evaluator(x, y, gallery=np.vstack([x[:-1], x + 1]), gallery_labels=np.concatenate([y[:-1], y]))
    evaluator(x, y)


@pytest.mark.parametrize(
    "ks", [np.array([1, 3]), [np.int64(1), np.int32(3)], (np.uint8(1), 3), range(1, 4, 2)], ids=str
)
def test_ks_may_be_any_whole_numbers(ks):
    x, y = oracle.embeddings_and_labels("random", 30, 8, 5)
    assert list(Evaluator(ks=ks, metrics=("recall",))(x, y)) == ["recall@1", "recall@3"]


Y = [3, 1, 3, 2, 1, 2, 3, 1]


@pytest.mark.parametrize(
    "labels",
    [
        np.array(Y, dtype=object),
        np.array([f"class {c}" for c in Y], dtype=object),
        [f"class {c}" for c in Y],
        np.array([f"class {c}" for c in Y], dtype=np.dtypes.StringDType()),
        [2**70 + c for c in Y],
        np.array([2**63 + c for c in Y], dtype=np.uint64),
        tuple(Y),
        torch.tensor(Y, dtype=torch.uint8),
        np.array(Y, dtype=">i4"),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_labels_are_what_is_equal(labels):
    x = np.random.default_rng(0).standard_normal((8, 3))
    evaluator = Evaluator(ks=(1, 2))
    assert evaluator(x, labels) == evaluator(x, Y)
    ranked = Evaluator(ks=(1, 2), metrics=RANKED)
    expected = ranked(x, Y, gallery=x + 1, gallery_labels=Y[::-1])
    assert ranked(x, labels, gallery=x + 1, gallery_labels=list(labels)[::-1]) == expected


def test_whole_numbers_of_different_types_are_compared_exactly():
    # As floats, all of these are 2**53.
    queries, gallery = np.array([2**53, 2**53 + 1], np.int64), np.array([2**53 + 1, 2**53, 2**63], np.uint64)
    evaluator = Evaluator(ks=(1,), metrics=("recall", "map"), normalize=False)
    x, g = np.array([[0.0], [1.0]]), np.array([[0.0], [1.0], [9.0]])
    for numbers in (gallery, gallery.astype(object)):
        assert evaluator(x, queries, gallery=g, gallery_labels=numbers) == {"recall@1": 0, "map": 0.5}
    assert evaluator(x, [True, False], gallery=g, gallery_labels=[0, 1, 1])["recall@1"] == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 1], "as many labels as embeddings, not 3 for 4"),
        ([[0, 0], [1, 1]], r"labels \[N\].*not \[2, 2\]"),
        ([[0], [1, 2]], r"labels \[N\].*several lengths"),
        (np.array([0, "a", 1, 1], dtype=object), "words among numbers"),
        (np.array([0, None, 1, 1], dtype=object), "whole numbers or words, not None"),
        ([0.0, 0.0, 1.0, 1.0], "whole numbers or words, not float64"),
        (5, r"labels \[N\].*not \[\]"),
    ],
)
def test_labels_that_are_none_of_these_are_refused_in_words(labels, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(ks=(1,))(np.eye(4), labels)


def test_words_are_not_compared_with_numbers():
    with pytest.raises(ValueError, match=r"words.*whole numbers"):
        Evaluator(ks=(1,))(np.eye(4), [0, 0, 1, 1], gallery=np.ones((4, 4)), gallery_labels=["0", "0", "1", "1"])


@pytest.mark.parametrize("name", METRICS)
def test_no_query_with_a_positive_is_refused(name):
    evaluator = Evaluator(ks=(1,), metrics=(name,))
    with pytest.raises(ValueError, match="no query has another image of its class"):
        evaluator(np.eye(4), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="no query has"):
        evaluator(np.eye(4), [0, 1, 2, 3], gallery=np.eye(4)[::-1], gallery_labels=[4, 5, 9, -1])
    assert evaluator(np.eye(4), [0, 1, 2, 3], gallery=np.eye(4)[::-1], gallery_labels=[3, 5, 9, -1])
    with pytest.raises(ValueError, match="no query has"):  # but itself
        evaluator(np.eye(2), [0, 1], gallery=np.eye(3, 2), gallery_labels=[0, 1, 2], own_index=[0, 1])


@pytest.mark.parametrize("backend", ["ranks", "faiss"])
@pytest.mark.parametrize("gallery", [False, True])
def test_images_of_a_group_do_not_find_each_other(backend, gallery):
    x, labels = oracle.embeddings_and_labels("grid", 60, 3, 6)
    groups = np.array(["front", "back", "side"])[np.random.default_rng(1).integers(0, 3, 60)]
    g, g_labels, g_groups = (each[10:50] for each in (x, labels, groups)) if gallery else (x, labels, groups)
    distances = np.sqrt(((x[:, None].astype(np.float64) - g[None]) ** 2).sum(axis=2))
    firsts, precisions = [], []
    for q in range(60):
        order = [i for i in np.argsort(distances[q], kind="stable") if g_groups[i] != groups[q]]
        hits = g_labels[order] == labels[q]
        firsts.append(hits[0])
        if hits.any():
            precisions.append(np.mean([hits[: i + 1].mean() for i in np.flatnonzero(hits)]))
    evaluate = Evaluator(ks=(1,), metrics=("recall", "map"), backend=backend, normalize=False)
    own = np.where((np.arange(60) >= 10) & (np.arange(60) < 50), np.arange(60) - 10, -1)
    given = {"gallery": g, "gallery_labels": g_labels, "gallery_groups": g_groups, "own_index": own} if gallery else {}
    found = evaluate(x, labels, groups=groups, **given)
    assert found == pytest.approx({"recall@1": np.mean(firsts), "map": np.mean(precisions)})
    with pytest.raises(ValueError, match="all images that are searched are of the group a"):
        evaluate(x, labels, groups=["a"] * 60)


@pytest.mark.parametrize("gallery", [False, True])
def test_what_follows_a_search_sees_no_image_of_the_querys_group(gallery):
    x, labels = oracle.embeddings_and_labels("random", 60, 5, 4)
    x = oracle.normalised(x)
    groups = np.random.default_rng(1).integers(0, 3, 60)
    g, g_labels, g_groups = (each[10:50] for each in (x, labels, groups)) if gallery else (x, labels, groups)
    also = {"qe": QueryExpansion(neighbours=3), "dba": Augmentation(neighbours=2), "kr": KReciprocal(k1=4, k2=2)}
    evaluate = Evaluator(ks=(1, 3), metrics=("recall",), also=also)
    given = {"gallery": g, "gallery_labels": g_labels, "gallery_groups": g_groups} if gallery else {}
    found = evaluate(x, labels, groups=groups, **given)
    expected = dict.fromkeys(found, 0.0)
    for group in range(3):  # as if the images of the group were not there
        mine, rest = groups == group, g_groups != group
        part = evaluate(x[mine], labels[mine], gallery=g[rest], gallery_labels=g_labels[rest])
        for name, value in part.items():
            expected[name] += value * mine.sum() / 60
    assert found == pytest.approx(expected) and {"qe/recall@1", "dba/recall@1", "kr/recall@3"} <= found.keys()
