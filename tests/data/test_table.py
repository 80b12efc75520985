"""Tables of images, and data sets of Hugging Face, in miniature."""

import numpy as np
import pytest
from PIL import Image

from dml.data.decode import load_image
from dml.data.table import load
from tests.app.conftest import train


def pixel(name):
    return Image.new("RGB", (6, 5), (sum(map(ord, str(name))) % 256, 7, 9))


def write(folder, header, rows, file="t.csv"):
    for row in rows:
        (folder / row[0]).parent.mkdir(parents=True, exist_ok=True)
        pixel(row[0]).save(folder / row[0], "PNG")
    lines = [header, *(",".join(f'"{field}"' if "," in field else field for field in row) for row in rows)]
    (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return str(folder / file)


ROWS = [
    ("a/1.png", "cat", "train", "", "1"),
    ("a/2.png", "dog", "train", "", "1"),
    ("a/3.png", "cat", "val", "", "1"),
    ("b/1.png", "10", "query", "x", "1"),
    ("b/1.png", "10", "gallery", "x", "1"),
    ("b/2.png", "2", "gallery", "y", "2"),
    ("b/3.png", "2", "query", "y", "1"),
]


def test_parts_names_and_the_query_that_is_in_the_gallery(tmp_path):
    file = write(tmp_path, "path,label,split,box,group", [(*row[:3], "1 2 5 4", row[4]) for row in ROWS])
    source = load(file=file)
    assert source.name == "t" and source.class_disjoint and not source.leak
    assert source.train.class_names == ("cat", "dog") and len(source.train) == 2
    rest, validation = source.hold_out(0.2)
    assert validation.class_names == ("cat",) and len(rest.train) == 2
    assert source.test.class_names == source.gallery.class_names == ("2", "10")  # numbers as numbers
    assert source.test.labels.tolist() == [0, 1] and source.own_index.tolist() == [-1, 1]
    assert source.gallery.groups.tolist() == ["2", "1"] and source.test.boxes.tolist() == [[1, 2, 5, 4]] * 2
    assert np.asarray(load_image(source.test.images[0])).tolist() == np.asarray(pixel("b/3.png")).tolist()


def test_paths_begin_at_the_root_and_columns_have_any_name(tmp_path):
    write(tmp_path / "images", "file,kind", [row[:2] for row in ROWS[:4]])
    (tmp_path / "images" / "t.csv").rename(tmp_path / "t.csv")
    named = {"path_column": "file", "label_column": "kind", "file": str(tmp_path / "t.csv")}
    source = load(root=str(tmp_path / "images"), **named)
    assert (source.train.class_names, source.test.class_names) == (("10", "cat"), ("dog",))
    assert "no test rows: the first 2 of 3 classes train" in source.notes[0]
    assert load(root=str(tmp_path / "images"), train_fraction=None, **named).test.num_classes == 3
    with pytest.raises(ValueError, match=r"4 images of 4 are not there; the first: .*data\.root=DIR"):
        load(**named)


def test_a_query_column_and_a_gallery_column(tmp_path):
    rows = [("0.png", "a", "train", "", ""), ("1.png", "b", "test", "1", "true"), ("2.png", "b", "test", "0", "yes")]
    file = write(tmp_path, "path,label,split,query,gallery", [*rows, ("3.png", "c", "test", "", "")])
    source = load(file=file)
    assert len(source.test) == 1 and len(source.gallery) == 2 and source.own_index.tolist() == [0]
    assert source.passed_over == {"test images that are neither query nor gallery": 1}


@pytest.mark.parametrize(
    ("header", "rows", "given", "said"),
    [
        ("path,label", ROWS[:1], {"split_column": "part"}, "data.split_column=part is no column"),
        ("path,kind", ROWS[:1], {}, "data.label_column=label is no column .* path, kind"),
        ("image,label", ROWS[:1], {}, "no column path with paths"),
        ("path,label,split", [("a.png", "x", "later")], {}, "split of .*a.png is later, which is none of train"),
        ("path,label", [("a.png", "")], {}, "image 1 .* has no label"),
        ("path,label,box", [("a.png", "x", "1,2,3")], {}, "the box of .* is 1,2,3, not left"),
        ("path,label,split", [("a.png", "x", "query")], {}, "queries and no gallery"),
        (
            "path,label,split",
            [("a.png", "x", "train"), ("b.png", "x", "test"), ("c.png", "y", "test")],
            {},
            "1 test cl",
        ),
    ],
)
def test_what_cannot_be_is_named(tmp_path, header, rows, given, said):
    rows = [row[: header.count(",") + 1] for row in rows]
    with pytest.raises(ValueError, match=said):
        load(file=write(tmp_path, header, rows), **given)


def test_known_classes_are_told(tmp_path):
    rows = [("a.png", "x", "train"), ("b.png", "x", "test")]
    source = load(file=write(tmp_path, "path,label,split", rows))
    assert not source.class_disjoint and source.leak == "all 1 test classes are training classes"


def test_images_in_parquet_are_unpacked_once(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write(tmp_path, "path,label", [row[:2] for row in ROWS])
    content = [(tmp_path / row[0]).read_bytes() for row in ROWS[:4]]
    table = arrow.table({"bytes": content, "label": [3, 3, 1, 2]})
    parquet.write_table(table, tmp_path / "t.parquet")
    given = {"file": str(tmp_path / "t.parquet"), "unpacked_dir": str(tmp_path / "unpacked")}
    first = load(**given)
    assert first.train.class_names == ("1", "2") and first.test.class_names == ("3",)
    assert [path.read_bytes() for path in first.test.images] == content[:2]
    times = [path.stat().st_mtime_ns for path in first.test.images]
    assert [path.stat().st_mtime_ns for path in load(**given).test.images] == times


@pytest.mark.parametrize("shards", [False, True])
def test_a_data_set_of_hugging_face(tmp_path, monkeypatch, shards):
    datasets = pytest.importorskip("datasets", reason="datasets comes with the extra [hf]")
    from dml.data.hf import load

    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    )
    parts = {"train": [0, 1, 1], "test": [2, 2]}
    stored = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"picture": [pixel(i) for i in range(len(kinds))], "kind": kinds}, features
            )
            for name, kinds in parts.items()
        }
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if shards:
        (tmp_path / "birds").mkdir()
        for name, part in stored.items():
            part.to_parquet(tmp_path / "birds" / f"{name}-00000-of-00001.parquet")
    else:
        stored.save_to_disk(str(tmp_path / "birds"))
    source = load(name=str(tmp_path / "birds"), unpacked_dir=str(tmp_path / "unpacked"))
    assert source.name == "birds" and source.train.class_names == ("cat", "dog") and len(source.train) == 3
    assert source.test.class_names == ("owl",) and source.class_disjoint
    assert np.asarray(load_image(source.test.images[1])).tolist() == np.asarray(pixel(1)).tolist()
    with pytest.raises(ValueError, match=r"data\.label_column=nosuch is no column"):
        load(name=str(tmp_path / "birds"), label_column="nosuch")
    with pytest.raises(ValueError, match="nowhere cannot be loaded"):
        load(name=str(tmp_path / "nowhere"))


def test_a_run_of_a_table_with_boxes_and_groups(tmp_path):
    rows = [
        (f"{c}/{i}.png", f"c{c}", "train" if c < 5 else "test", str(i % 2), "0 1 5 4")
        for c in range(7)
        for i in range(4)
    ]
    file = write(tmp_path, "path,label,split,group,box", rows)
    batch = ("batch.classes_per_batch=3", "batch.samples_per_class=2", "evaluator.ks=[1]", "data.val_fraction=0.4")
    more = ("evaluator.normalize=true", "evaluator.codes=[int8]", "transform.crop_to_box=true")
    given = ("data=table", f"data.file={file}", *batch)
    run = train(tmp_path / "run", *given, *more, "+evaluator.also.qe._target_=dml.retrieval.expansion.QueryExpansion",
                "+evaluator.also.qe.neighbours=2")  # fmt: skip
    assert 0 <= run.metrics["test/int8-2B/recall@1"] <= 1 and "test/qe/recall@1" in run.metrics
    assert "Images of the query's own group are left out" in (run.folder / "report.html").read_text()
    with pytest.raises(ValueError, match=r"evaluator.ks=\[5\] asks for more neighbours than the 4 that a query of the"):
        train(tmp_path / "other", *given, "evaluator.ks=[5]")


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("xxxx", "all images that the test part is searched in are of the group x"),
        ("xxyy", "no query of the test part has an image of its class in another group"),
        ("xyx", "1 image of 4 have no group"),
    ],
)
def test_groups_that_leave_nothing_to_find_are_told_before_the_training(tmp_path, groups, said):
    rows = [(f"t/{i}.png", f"t{i // 3}", "train", "") for i in range(18)]
    rows += [(f"{i}.png", f"c{i // 2}", "test", group) for i, group in enumerate(groups.ljust(4))]
    file = write(tmp_path, "path,label,split,group", rows)
    with pytest.raises(ValueError, match=said):
        train(tmp_path / "run", "data=table", f"data.file={file}", "batch.classes_per_batch=2", "evaluator.ks=[1]")


def test_rows_for_validation_that_a_protocol_does_not_use_are_told(tmp_path, caplog):
    side = {0: "train", 1: "train", 2: "train", 3: "val", 4: "val"}
    rows = [(f"{c}/{i}.png", f"c{c}", side.get(c, "test")) for c in range(7) for i in range(3)]
    given = [f"data.file={write(tmp_path, 'path,label,split', rows)}", "data=table", "batch.classes_per_batch=3"]
    train(tmp_path / "run", "protocol=paper", *given, "batch.samples_per_class=2", "evaluator.ks=[1]")
    assert "protocol=paper has no validation: 6 images that the data names for it will not be used" in caplog.text
