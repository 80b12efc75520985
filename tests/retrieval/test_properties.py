"""Any embeddings and labels: ranks, neighbours and metrics are those of the slow oracle, or a ValueError says why."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dml.retrieval import ranks as counting
from dml.retrieval import tiles
from dml.retrieval.evaluator import BACKENDS, Evaluator
from dml.retrieval.ranks import positive_ranks
from dml.retrieval.search import Search, searched_ranks
from tests.retrieval import oracle

RANKED = ("recall", "map@r", "r_precision", "map", "mrr")
KINDS = {
    "normal": lambda x: x,
    "grid": np.round,
    "two values": lambda x: np.sign(x[:, :1]) + 0 * x,
    "signs": np.sign,
    "twins": lambda x: x[np.arange(len(x)) // 2],
    "collapsed": lambda x: x[:1] + 0 * x,
    "zeros": lambda x: 0 * x,
    "far": lambda x: x + 1000,
    "near": lambda x: 1 + 1e-6 * x,
    "two tight": lambda x: np.sign(x[:, :1]) * (1 + 0 * x) + 1e-7 * x,
    "tight among others": lambda x: np.where(np.arange(len(x))[:, None] % 3, x[:1] + 1e-6 * x, x),
    "steps": lambda x: np.round(3 * x) * np.float32(0.3),
    "edge of rounding": lambda x: np.round(x) + 1e-7 * np.round(3 * x),
    "mixed scales": lambda x: x * 10.0 ** np.linspace(-20, 20, len(x))[:, None],
    "lines": lambda x: np.round(x[:, :1]) * np.arange(1, x.shape[1] + 1),
}
FORMS = {
    "tensor": lambda x: torch.from_numpy(x.copy()),
    "float64": lambda x: torch.from_numpy(x.copy()).double(),
    "array": lambda x: x,
    "list": lambda x: x.tolist(),
    "float64 array": lambda x: x.astype(np.float64),
    "big endian": lambda x: x.astype(">f4"),
    "transposed": lambda x: torch.from_numpy(np.ascontiguousarray(x.T)).T,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "with gradient": lambda x: torch.from_numpy(x.copy()).requires_grad_() * 1,
}
LABELS = {
    "int64": lambda y: y,
    "list": lambda y: y.tolist(),
    "tensor": torch.tensor,
    "int16": lambda y: y.astype(np.int16),
    "negative": lambda y: -y,
    "huge": lambda y: 2**63 - 1 - y,
    "strided": lambda y: np.repeat(y, 3)[::3],
    "backwards": lambda y: y[::-1].copy()[::-1],
}


class Given(NamedTuple):
    """What hypothesis chooses; the numbers follow from it."""

    n: int
    d: int
    kind: str = "normal"
    classes: int = 3
    scale: int = 0
    half: str = ""  # rounded to this type first
    gallery: int = 0  # items of a gallery; 0: among the others
    seed: int = 0

    def make(self):
        """Queries, their labels, gallery, its labels: float32 arrays, the latter two None if there is none."""
        rng = np.random.default_rng(self.seed)
        n = self.n + self.gallery
        x = KINDS[self.kind](rng.standard_normal((n, self.d))) * (10.0**self.scale if self.kind[:5] != "mixed" else 1)
        if self.half:
            x = torch.from_numpy(x).to(getattr(torch, self.half)).nan_to_num().float().numpy()
        x, y = x.astype(np.float32), rng.integers(0, self.classes, n)
        order = rng.permutation(n)  # so that kinds that go by the row mix queries and gallery
        x, y = x[order], y[order]
        return (x[: self.n], y[: self.n], x[self.n :], y[self.n :]) if self.gallery else (x, y, None, None)


BATCHES = st.builds(
    Given,
    n=st.integers(1, 60),
    d=st.one_of(st.integers(1, 6), st.integers(7, 70)),
    kind=st.sampled_from([*KINDS]),
    classes=st.one_of(st.integers(1, 8), st.integers(9, 200)),
    scale=st.one_of(st.just(0), st.integers(-20, 20)),
    half=st.sampled_from(["", "", "float16", "bfloat16"]),
    gallery=st.one_of(st.just(0), st.integers(1, 60)),
    seed=st.integers(0, 2**20),
)


def ranking(q, g):
    """The oracle's neighbours and distances; no example where those of two items differ by float64's rounding alone."""
    order, distances = oracle.ranking(q, q if g is None else g, np.arange(len(q)) if g is None else None)
    gaps = np.diff(distances, axis=1)
    assume(not ((gaps > 0) & (gaps < 1e-12 * distances[:, 1:])).any())
    return order, distances


WAYS = st.sampled_from([(0.25, 8), (np.inf, 8), (-1, 8), (-1, 0)])


@given(
    batch=BATCHES,
    tile=st.sampled_from([7, 32, 1536]),
    way=WAYS,
    equal=st.sampled_from([-1, counting._EQUAL, np.inf]),
    pairs=st.sampled_from([30, counting._PAIRS]),
    parts=st.integers(1, 4),
)
def test_any_ranks(batch, tile, way, equal, pairs, parts):
    q, y, g, g_labels = batch.make()
    order, _ = ranking(q, g)
    expected = oracle.ranks(order, y, y if g is None else g_labels)
    tensors = [None if each is None else torch.from_numpy(each) for each in (q, g)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_TILE", {"cpu": tile})
        patch.setattr(counting, "_EQUAL", equal)
        patch.setattr(counting, "_FEWER", 1 if equal < 0 else 4)
        patch.setattr(counting, "_PAIRS", pairs)
        patch.setattr(counting, "_LEAST", 2)
        patch.setattr(tiles, "_LISTED", way[0])
        patch.setattr(tiles, "_FEW", way[1])
        for nearest in (False, True):
            wanted = [each[:1] if nearest else each for each in expected]
            sums = []
            given = {"gallery": tensors[1], "gallery_labels": g_labels, "nearest_only": nearest}
            for part in range(parts):
                keep = lambda counts, sums=sums: sums.append(counts) or counts  # noqa: E731
                positive_ranks(tensors[0], y, **given, share=(part, parts), add_up=keep)
            blocks = len(sums) // parts
            totals = iter([sum(sums[block::blocks]) for block in range(blocks)])
            add = lambda _, totals=totals: next(totals)  # noqa: E731
            found = positive_ranks(tensors[0], y, **given, share=(0, parts), add_up=add)
            assert found.counts.tolist() == [len(each) for each in wanted]
            np.testing.assert_array_equal(found.ranks, np.concatenate(wanted))
    if order.size:  # a single item has nobody to search for
        found = searched_ranks(q, y, g, g_labels)
        np.testing.assert_array_equal(found.ranks, np.concatenate(expected))


@given(batch=BATCHES, data=st.data())
def test_any_search(batch, data):
    q, _, g, _ = batch.make()
    own = np.arange(len(q)) if g is None else None
    g = q if g is None else g
    available = len(g) - (own is not None)
    k = data.draw(st.integers(0, available + 1))
    if not 1 <= k <= available:
        with pytest.raises(ValueError, match=r"evaluator\.ks"):
            Search(g)(q, k, own)
        return
    order, expected = ranking(q, None if own is not None else g)
    found, distances = Search(g)(q, k, own)
    np.testing.assert_array_equal(found, order[:, :k])
    np.testing.assert_allclose(distances, expected[:, :k], rtol=1e-12)


@given(
    batch=BATCHES,
    forms=st.tuples(*[st.sampled_from([*FORMS])] * 2),
    labels=st.tuples(*[st.sampled_from([*LABELS])] * 2),
    normalize=st.booleans(),
    names=st.sets(st.sampled_from(RANKED), min_size=1),
    backend=st.sampled_from(BACKENDS),
    k=st.integers(1, 12),
)
@example(Given(9, 2, scale=-20), ("tensor",) * 2, ("int64",) * 2, True, {"recall"}, "ranks", 1)  # were not normalised
@example(Given(9, 2), ("big endian",) * 2, ("backwards",) * 2, True, {"map"}, "ranks", 1)
def test_any_evaluation(batch, forms, labels, normalize, names, backend, k):
    q, y, g, g_labels = batch.make()
    if g is not None:
        labels = (labels[0], labels[0]) if {"negative", "huge"} & {*labels} else labels
    given = (FORMS[forms[0]](q), LABELS[labels[0]](y))
    gallery = {} if g is None else {"gallery": FORMS[forms[1]](g), "gallery_labels": LABELS[labels[1]](g_labels)}
    evaluator = Evaluator(ks=(k,), metrics=sorted(names), normalize=normalize, backend=backend)
    available = len(q) - 1 if g is None else len(g)
    order, _ = ranking(*(each if each is None or not normalize else unit(each) for each in (q, g)))
    hits = sum(map(len, oracle.ranks(order, y, y if g is None else g_labels)))
    if ("recall" in names and k > available) or not hits:
        with pytest.raises(ValueError, match=r"evaluator\.ks" if hits else r"no query|evaluator\.ks"):
            evaluator(*given, **gallery)
        return
    scores = oracle.scores(order, y, y if g is None else g_labels, (k,))
    wanted = {name for name in scores if name in names or ("recall" in names and name == f"recall@{k}")}
    assert evaluator(*given, **gallery) == pytest.approx({name: scores[name] for name in wanted}, rel=1e-12)


@given(batch=BATCHES, broken=st.sampled_from([np.nan, np.inf, -np.inf]), place=st.integers(0, 10**6), data=st.data())
def test_one_number_that_is_not_finite(batch, broken, place, data):
    q, y, g, g_labels = batch.make()
    x = q if g is None or place % 2 else g
    x.flat[place % x.size] = broken
    evaluator = Evaluator(ks=(1,), metrics=RANKED, backend=data.draw(st.sampled_from(BACKENDS)))
    gallery = {} if g is None else {"gallery": g, "gallery_labels": g_labels}
    with pytest.raises(ValueError, match=f"1 of {len(x)} embeddings are NaN or infinite"):
        evaluator(q, y, **gallery)
    with pytest.raises(ValueError, match=f"1 of {len(x)} embeddings are NaN or infinite"):
        Search(q if g is None else g)(q, 1)


@pytest.mark.parametrize(
    "labels",
    [[0.0, 1.0, 0.0], [0, 1, None], [0, 1, np.nan], [2**63, -1, 0], torch.zeros(3).bfloat16(), [[0], [1], [0]], [0, 1]],
    ids=str,
)
def test_labels_that_are_none(labels):
    with pytest.raises(ValueError, match="labels"):
        Evaluator(ks=(1,))(np.eye(3), labels)


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3), np.zeros((3, 2, 2)), np.zeros((4, 2))])
def test_embeddings_of_other_shapes(x):
    with pytest.raises(ValueError, match="embeddings"):
        Evaluator(ks=(1,))(x, [0, 1, 0])


@given(batch=BATCHES)
def test_any_clustering(batch):
    x, y, _, _ = batch.make()
    if len(set(y)) < len(y):
        assert 0 <= Evaluator(metrics=("nmi",), normalize=False, nmi_restarts=1)(x, y)["nmi"] <= 1 + 1e-12


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_clustering_at_any_scale(scale):
    x, y = oracle.embeddings_and_labels("random", 40, 3, 3)
    x[:, 0] += 20 * y
    assert Evaluator(metrics=("nmi",), normalize=False, nmi_restarts=1)(x * scale, y) == {"nmi": pytest.approx(1.0)}


def unit(x):
    """Rows of length 1, and zero rows as they are."""
    x = x.astype(np.float64)
    lengths = np.array([math.hypot(*row) for row in x])
    return (x / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
