"""dml index and dml search: what is found is what is nearest, and nothing is left where it cannot be."""

import json
import pickle
import re
import sqlite3
import sys

import numpy as np
import pytest
from PIL import Image

from dml.use.embeddings import About, Embeddings, write_embeddings
from dml.use.index import Index, build_index, measure
from tests.use.conftest import copy_of_run, refused, run


def near(index, queries, k):
    """A slow loop in float64 over the file that the index was made of."""
    x = np.concatenate(list(index.blocks())).astype(np.float64)
    return np.stack([np.argsort(((x - query) ** 2).sum(axis=1), kind="stable")[:k] for query in queries])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Embeddings of images that are not there: 600 of 8 dimensions."""
    path = tmp_path_factory.mktemp("many") / "many.npz"
    x = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    about = About("0" * 16, "/none", 8, False, len(x), "")
    write_embeddings(path, about, [f"images/{i}.png" for i in range(len(x))], [x[:100], x[100:]])
    return Embeddings(path)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("dml.use.embeddings._BLOCK_ELEMENTS", 800)  # six blocks of 100


@pytest.mark.parametrize(
    ("store", "settings", "least"),
    [
        ("faiss", {}, 1.0),
        ("faiss", {"factory": "IVF8,Flat", "parameters": "nprobe=8"}, 1.0),
        ("faiss", {"factory": "HNSW16", "parameters": "efSearch=64"}, 0.95),
        ("qdrant", {"collection": "many"}, 1.0),
    ],
)
def test_the_nearest_are_found(many, small_blocks, tmp_path, store, settings, least):
    quality = build_index(many, tmp_path / "many.index", store, **settings)
    assert least <= quality.recall <= 1 and (quality.k, quality.queries) == (10, 600) and quality.milliseconds > 0
    index = Index(tmp_path / "many.index")
    queries = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    distances, rows = index.find(queries, 5)
    exact = near(many, queries, 5)
    assert (rows == exact).mean() >= least
    x = np.concatenate(list(many.blocks()))
    assert distances[:, 0] == pytest.approx(np.linalg.norm(x[rows[:, 0]] - queries, axis=1), abs=1e-4)
    assert [str(path) for path in index.paths(rows[0])] == [f"images/{i}.png" for i in rows[0]]


def test_recall_is_the_share_of_the_nearest_that_are_found(many, small_blocks, tmp_path):
    build_index(many, tmp_path / "pq.index", "faiss", factory="IVF16,PQ2x4")
    find = Index(tmp_path / "pq.index").find
    quality = measure(many, find, k=4, sample=50)
    rows = np.sort(np.random.default_rng(0).permutation(600)[:50])
    x = np.concatenate(list(many.blocks()))
    exact = near(many, x[rows], 5)[:, 1:]  # without itself
    found = [[one for one in find(x[row][None], 5)[1][0] if one != row][:4] for row in rows]
    assert quality.recall == pytest.approx(np.mean([len({*a} & {*b}) / 4 for a, b in zip(exact, found, strict=True)]))
    assert 0 < quality.recall < 1


@pytest.mark.parametrize("store", ["faiss", "qdrant"])
def test_search_on_the_command_line(embedded, finished, model, tree, tmp_path, capsys, store):
    run("index", embedded, "--store", store, "--out", tmp_path / "x.index")
    assert "recall@10 1.0000 against exact search (42 of the images as queries)" in capsys.readouterr().out
    query, picture = tree / "class2" / "3.png", tmp_path / "found.png"
    run("search", tmp_path / "x.index", query, "-k", 5, "--out", picture)
    out = capsys.readouterr().out
    found = [line.split(maxsplit=2) for line in out.splitlines() if re.match(r" +\d+ ", line)]
    file = np.load(embedded)
    distances = np.linalg.norm(file["embeddings"] - model.embed([query]).numpy(), axis=1)
    assert found[0] == ["1", "0.0000", str(query)] and len(found) == 5
    assert [float(distance) for _, distance, _ in found] == pytest.approx(np.sort(distances)[:5], abs=1e-3)
    assert re.search(r"[\d.]+ ms to embed and [\d.]+ ms to search, a query", out)
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 600 and len(drawn.getcolors(1 << 24)) > 5


def test_an_index_of_another_model_is_refused(embedded, finished, tree, tmp_path):
    run("index", embedded, "--out", tmp_path / "x.index")
    other, query = copy_of_run(finished, tmp_path / "run"), tree / "class0" / "0.png"
    said = refused("search", tmp_path / "x.index", query, "--model", other)
    assert re.search(r"x\.index is of another model \(\w{16}\) than .*best\.ckpt \(\w{16}\): give the run", said)
    content = json.loads((tmp_path / "x.index" / "index.json").read_text())
    content["about"]["dimension"] = 64
    (tmp_path / "x.index" / "index.json").write_text(json.dumps(content))
    assert "has 42 embeddings of 2 dimensions, and index.json says 42 of 64" in refused(
        "search", tmp_path / "x.index", query
    )


def test_what_is_not_there_is_told_before_torch_is_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dml.use.data", None)  # an import of it, which imports torch, is an error
    there, missing = tmp_path / "there.jpg", tmp_path / "missing.jpg"
    there.touch()
    for command in (("search", missing, there), ("search", tmp_path, there, missing), ("embed", tmp_path, missing)):
        assert refused(*command) == f"{missing}: does not exist"


def test_mistakes_are_one_line_and_leave_nothing(embedded, tree, tmp_path):
    out, query = tmp_path / "x.index", tree / "class0" / "0.png"
    for settings, said in (
        (("--factory", "foo"), "could not parse index string foo"),
        (("--factory", "IVF64,Flat"), "--factory IVF64,Flat cannot be trained"),
        (("--parameters", "nprobe=4"), "--parameters nprobe=4 is not possible for Flat"),
        (("--url", "http://127.0.0.1:9"), "--url is for --store qdrant"),
        (("--store", "qdrant", "--url", "http://127.0.0.1:9"), "the store http://127.0.0.1:9 cannot be used: "),
    ):
        assert said in refused("index", embedded, "--out", out, *settings)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "y.npz").write_bytes(b"no")
    assert "cannot be read as a file of embeddings" in refused("index", tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", embeddings=np.eye(3))
    assert "was not written by `dml embed`" in refused("index", tmp_path / "z.npz")
    assert "is no index" in refused("search", tmp_path, query)
    run("index", embedded, "--out", out)
    assert "is there already" in refused("index", embedded, "--out", out)
    assert "-k 43 is more than the 42 images" in refused("search", out, query, "-k", 43)
    (tmp_path / "broken.png").write_bytes(b"no")
    assert "broken.png cannot be read" in refused("search", out, tmp_path / "broken.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "x.index", "y.npz", "z.npz"]


class Evil:
    def __reduce__(self):
        return print, ("this was run",)


def test_a_strangers_local_store_runs_no_code(many, tmp_path, capsys):
    build_index(many, tmp_path / "x.index", "qdrant", collection="c")
    (file,) = (tmp_path / "x.index").rglob("*.sqlite")
    with sqlite3.connect(file) as database:
        database.execute("INSERT INTO points VALUES ('x', ?)", (pickle.dumps(Evil()),))
    database.close()
    with pytest.raises(ValueError, match=r"could run code: builtins\.print"):
        Index(tmp_path / "x.index")
    assert "this was run" not in capsys.readouterr().out


def test_a_store_that_fails_midway_leaves_nothing(many, tmp_path, monkeypatch):
    blocks = Embeddings.blocks

    def failing(self):
        yield next(blocks(self))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Embeddings, "blocks", failing)
    for store, settings in (("faiss", {}), ("qdrant", {"collection": "c"})):
        with pytest.raises(OSError):
            build_index(many, tmp_path / "x.index", store, **settings)
        assert list(tmp_path.iterdir()) == []
