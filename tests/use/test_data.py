"""dml embed and dml search by data=..., as train.py takes it: each image once, as the network saw it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dml.data.digits import load as load_digits
from dml.retrieval.evaluator import Evaluator
from dml.use import search as searching
from dml.use.embeddings import Embeddings
from tests.app.conftest import evaluate, train
from tests.use.conftest import refused, run

ROWS = (
    ("class0/0.png", "a", "train", "1 2 9 8", "x"),
    ("class1/0.png", "a", "val", "0 0 6 6", "x"),
    ("class4/0.png", "b", "query", "1 2 9 8", "x"),
    ("class4/0.png", "b", "gallery", "1 2 9 8", "x"),
    ("class4/0.png", "b", "gallery", "2 2 7 11", "y"),
    ("class5/1.png", "c", "gallery", "0 1 5 9", "y"),
)


def write_table(folder, tree, rows=ROWS, names="path,label,split,box,group"):
    lines = [names, *(",".join((f"{tree}/{path}", *more)) for path, *more in rows)]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


@pytest.fixture(scope="module")
def cutting(finished, tmp_path_factory):
    """The run, as if it had been trained on images cut to their boxes."""
    folder = tmp_path_factory.mktemp("cutting") / "run"
    checkpoint = finished.checkpoint("best")
    checkpoint["dml_config"]["transform"]["crop_to_box"] = True
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    (folder / "metrics.json").write_bytes((finished.folder / "metrics.json").read_bytes())
    return folder


def known(path):
    return {name: column.tolist() for name, column in Embeddings(path).columns().items()}


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_table_with_boxes_parts_and_groups(cutting, model, tree, tmp_path, monkeypatch, capsys, ending):
    table, out = write_table(tmp_path, tree), tmp_path / f"e.{ending}"
    run("embed", cutting, "data=table", f"data.file={table}", "--out", out)
    said = capsys.readouterr().err
    assert "gallery: 3 images of 2 classes" in said and "1 image named more than once" in said
    assert known(out) == {
        "labels": ["a", "a", "b", "b", "c"],
        "parts": ["train", "validation", "test+gallery", "gallery", "gallery"],
        "groups": ["x", "x", "x", "y", "y"],
        "boxes": [[1, 2, 9, 8], [0, 0, 6, 6], [1, 2, 9, 8], [2, 2, 7, 11], [0, 1, 5, 9]],
    }
    paths, cut = Embeddings(out).paths(), []
    for i, (path, box) in enumerate(zip(paths, known(out)["boxes"], strict=True)):
        Image.open(path).crop([*map(int, box)]).save(tmp_path / f"{i}.png")
        cut.append(tmp_path / f"{i}.png")
    assert torch.equal(model.embed(cut), torch.from_numpy(np.concatenate(list(Embeddings(out).blocks()))))

    # Through an index to a search, whose queries are cut as well.
    drawn = []
    monkeypatch.setattr(searching, "draw_neighbours", lambda groups, path: drawn.extend(groups[0][1]) or path)
    run("index", out, "--out", tmp_path / "x.index")
    query = tmp_path / "q.csv"
    query.write_text(f"path,label,box\n{tree}/class4/0.png,b,2 2 7 11\n")
    capsys.readouterr()
    run("search", tmp_path / "x.index", query, "-k", 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tree}/class4/0.png  b"
    assert lines[1].split() == ["1", "0.0000", f"{tree}/class4/0.png", "b"]
    (example,) = drawn
    assert example.query.size == example.found[0][0].size == (5, 9)  # as the network saw them
    assert sorted(right for _, right in example.found) == [False, False, False, True, True]


def test_parts_are_chosen_and_a_table_by_itself_will_do(cutting, finished, tree, tmp_path, capsys):
    table = write_table(tmp_path, tree)
    run("embed", cutting, table, "--part", "gallery", "--part", "validation", "--out", tmp_path / "g.npz")
    assert known(tmp_path / "g.npz")["parts"] == ["validation", "gallery", "gallery", "gallery"]
    run("embed", finished.folder, table, "--out", tmp_path / "whole.npz")  # this run cut nothing
    assert known(tmp_path / "whole.npz") == {
        "labels": ["a", "a", "b", "c"],
        "parts": ["train", "validation", "test+gallery", "gallery"],
        "groups": ["x", "x", "x", "y"],
    }
    capsys.readouterr()
    run(
        "embed",
        cutting,
        write_table(tmp_path, tree, [("class0/0.png", "a")], "path,label"),
        "--out",
        tmp_path / "n.npz",
    )
    assert "test: t has no boxes, so images are embedded whole" in capsys.readouterr().err
    run("embed", cutting, tree / "class0", "--out", tmp_path / "f.npz")
    assert "files have none, so they are embedded whole" in capsys.readouterr().err


@pytest.mark.parametrize("struct", [False, True])
def test_images_in_parquet_and_without_labels(finished, model, tree, tmp_path, monkeypatch, capsys, struct):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    content = [(tree / f"class{c}" / "0.png").read_bytes() for c in (3, 1, 2)]
    column = [{"bytes": one, "path": None} for one in content] if struct else content
    parquet.write_table(arrow.table({"image": column, "weight": [1, 2, 3]}), tmp_path / "p.parquet")
    run("embed", finished.folder, "p.parquet", "data.bytes_column=image", "--out", "e.npz")
    assert "p.parquet has no column label: images are embedded without labels" in capsys.readouterr().err
    paths = Embeddings(tmp_path / "e.npz").paths()
    assert [path[-8:] for path in paths] == ["0000/000", "0000/001", "0000/002"]  # the rows
    monkeypatch.chdir(tree)
    assert [Path(path).read_bytes() for path in paths] == content  # wherever they are read from
    assert known(tmp_path / "e.npz") == {"parts": ["test"] * 3}
    expected = model.embed([tree / f"class{c}" / "0.png" for c in (3, 1, 2)]).numpy()
    assert np.array_equal(np.load(tmp_path / "e.npz")["embeddings"], expected)


def test_the_runs_own_data_has_the_runs_parts(finished, tree, tmp_path):
    run("embed", finished.folder, "data=as_trained", "--out", tmp_path / "e.npz")
    row = json.loads((finished.folder / "metrics.json").read_text())["row"]["parts"]
    found = known(tmp_path / "e.npz")
    assert {name: found["parts"].count(name) for name in row} == {name: row[name]["images"] for name in row}
    for path, label in zip(Embeddings(tmp_path / "e.npz").paths(), found["labels"], strict=True):
        assert path.startswith(f"{tree}/{label}/")
    run("embed", finished.folder, f"data.root={tree}", "--out", tmp_path / "all.npz")  # as evaluate.py takes it
    assert set(known(tmp_path / "all.npz")["parts"]) == {"test"}


def test_images_in_memory_become_files(finished, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("embed", finished.folder, "data=digits", "--part", "test", "--out", "e.npz", "--workers", 0)
    records = load_digits().test
    assert torch.equal(model.embed(records.images), torch.from_numpy(np.load("e.npz")["embeddings"]))
    assert known(tmp_path / "e.npz")["labels"] == [records.class_names[label] for label in records.labels]
    assert np.array_equal(np.asarray(Image.open(Embeddings(tmp_path / "e.npz").paths()[7])), records.images[7])


def test_it_goes_on_exactly_and_other_labels_are_another_file(cutting, tree, tmp_path, monkeypatch, capsys):
    rows = [(f"class{c}/{i}.png", f"c{c}", "test", f"{i} 1 9 8") for c in range(4) for i in range(5)]
    table = write_table(tmp_path, tree, rows, "path,label,split,box")
    command = ("embed", cutting, table, "--batch-size", 1, "--workers", 0, "--out")
    run(*command, tmp_path / "whole.npz")
    seen, read = [], Image.Image.crop

    def interrupted(image, box):
        seen.append(box)
        if len(seen) == 11:
            raise KeyboardInterrupt
        return read(image, box)

    monkeypatch.setattr(Image.Image, "crop", interrupted)
    with pytest.raises(SystemExit, match="130"):
        run(*command, tmp_path / "e.npz")
    assert not (tmp_path / "e.npz").exists()
    run(*command, tmp_path / "e.npz")
    assert "Going on: 1 of 3 blocks are there" in capsys.readouterr().out
    assert (tmp_path / "e.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    write_table(tmp_path, tree, [(row[0], "other", *row[2:]) for row in rows], "path,label,split,box")
    assert "other images or labels" in refused(*command, tmp_path / "e.npz")


def test_broken_images_are_left_out_as_the_data_says(finished, tree, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG broken")
    table = write_table(tmp_path, tree, [("class0/0.png", "a"), (f"../{tmp_path.name}/bad.png", "b")], "path,label")
    table.write_text(f"path,label\n{tree}/class0/0.png,a\nbad.png,b\n")
    command = ("embed", finished.folder, f"data.file={table}", "data=table", "--out", tmp_path / "e.npz")
    assert "bad.png: cannot identify" in refused(*command)
    run(*command, "data.on_error=skip")
    assert "1 image cannot be decoded and left out" in capsys.readouterr().out
    assert known(tmp_path / "e.npz") == {"labels": ["a"], "parts": ["test"]}
    assert "more than --max-bad 0" in refused(*command[:-1], tmp_path / "f.npz", "data.on_error=skip", "data.max_bad=0")


def test_mistakes_are_one_line(finished, tree, tmp_path):
    table = write_table(tmp_path, tree)
    for given, said in (
        (("data=nosuch",), "data=nosuch is no choice: there is as_trained, cars196"),
        (("data=table", f"data.fil={table}"), "data.fil is no key: there is file"),
        (("data=table",), "data=table needs data.file=FILE"),
        (("data=table", f"data.file={table}", tree), "images are named by data= and as files"),
        ((table, tree), "t.csv is a table: embed it by itself"),
        ((tree, "--part", "test"), "--part is for images that are named by data=..."),
        (("data=as_trained", "--part", "gallery"), "--part gallery is not possible: tree has train, validation, test"),
        (("data.root=[",), "data.root"),
    ):
        assert said in refused("embed", finished.folder, *given, "--out", tmp_path / "e.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv"]


def test_a_data_set_of_hugging_face_is_trained_on_evaluated_and_embedded(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets comes with the extra [hf]")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=[*"abcdefgh"])})

    def part(classes):
        kinds = [c for c in classes for _ in range(4)]
        pictures = [Image.fromarray(rng.integers(0, 60, (9, 8), dtype=np.uint8) + np.uint8(20 * c)) for c in kinds]
        return datasets.Dataset.from_dict({"picture": pictures, "kind": kinds}, features)

    parts = {"train": part(range(3)), "validation": part([3, 4]), "test": part([5, 6, 7])}
    datasets.DatasetDict(parts).save_to_disk("set")
    batch = ("batch.classes_per_batch=3", "batch.samples_per_class=2", "evaluator.ks=[1]", "evaluator.metrics=[recall]")
    trained = train(tmp_path / "run", "data=hf", "data.name=set", *batch, "protocol.monitor=val/recall@1")
    row = json.loads((trained.folder / "metrics.json").read_text())["row"]
    assert row["data"] == "set" and [one["images"] for one in row["parts"].values()] == [12, 8, 12]
    again = evaluate(tmp_path / "again", trained.folder / "checkpoints" / "best.ckpt")
    assert again.metrics["test/recall@1"] == trained.metrics["test/recall@1"]
    unpacked = sorted((tmp_path / "data" / "unpacked").rglob("*"))
    run("embed", trained.folder, "data=hf", "data.name=set", "--workers", 0)
    assert sorted((tmp_path / "data" / "unpacked").rglob("*")) == unpacked  # written once
    assert known(tmp_path / "embeddings.npz") == {
        "labels": [*"aaaabbbbccccddddeeeeffffgggghhhh"],
        "parts": ["train"] * 12 + ["validation"] * 8 + ["test"] * 12,
    }
    found = np.load(tmp_path / "embeddings.npz")
    test = found["parts"] == "test"
    evaluator = Evaluator(ks=[1], metrics=["recall"], normalize=False)  # as the experiment of the digits
    by_hand = evaluator(found["embeddings"][test], found["labels"][test])
    assert by_hand["recall@1"] == pytest.approx(trained.metrics["test/recall@1"])
