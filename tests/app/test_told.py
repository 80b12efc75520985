"""What a run says of its data at its start."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dml.app.told import describe, tell
from dml.data.dataset import Records, Source
from tests.app.conftest import train, write_images
from tests.data.test_dataset import make_records


def paths(tmp_path, *classes):
    images = [tmp_path / "some" / name / f"{i}.png" for name, size in classes for i in range(size)]
    labels = np.repeat(np.arange(len(classes)), [size for _, size in classes])
    return Records(images, labels, tuple(name for name, _ in classes))


def test_a_part_in_a_line(tmp_path):
    records = paths(tmp_path, ("a", 2), ("b", 1200), ("c", 7))
    said = "1,209 images of 3 classes (2 to 1,200 for each class), from "
    assert describe(records) == f"{said}{tmp_path / 'some'}"
    assert describe(replace(records, left_out=3)).endswith("some, 3 left out (they cannot be decoded)")
    alone = paths(tmp_path, ("a", 1))
    assert describe(alone).startswith("1 image of 1 class (1 for each class)") and describe(alone).endswith("some/a")
    assert describe(make_records([2, 3])) == "5 images of 2 classes (2 to 3 for each class), in memory"
    relative = Records([Path("x/a/1.png"), Path("x/b/1.png")], np.arange(2), ("a", "b"))
    assert describe(relative).endswith(f"from {Path.cwd() / 'x'}")
    # A class that a part has no image of is none of its classes.
    assert replace(alone, class_names=("a", "b")).sizes["classes"] == 1


@pytest.mark.parametrize("tested_only", [False, True])
def test_every_part_is_told(tmp_path, caplog, tested_only):
    caplog.set_level(logging.INFO)
    train, test, gallery = (paths(tmp_path / part, (f"{part}\udcff", 2)) for part in ("train", "test", "gallery"))
    source = Source("odd", train, test, gallery, passed_over={".txt": 2}, notes=("a note",), leak="a leak")
    tell(source, make_records([2]), tested_only=tested_only)
    said = [record.getMessage() for record in caplog.records]
    parts = [line.partition(":")[0] for line in said]
    expected = ["test", "gallery"] if tested_only else ["training", "validation", "test", "gallery"]
    assert parts[: len(expected)] == expected and all("(2 for each class)" in line for line in said[: len(expected)])
    assert said[len(expected) :] == [
        "Passed over in odd: 2 .txt", "a note", "odd: a leak. So no score of this run is a score on unseen classes"
    ]  # fmt: skip
    assert all(line.isprintable() for line in said)


def test_parts_are_told_before_they_are_refused(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tree = write_images(tmp_path / "tree", classes=12, images=3)
    with pytest.raises(
        ValueError, match=r"sampler\.classes_per_batch=5 is more than the 4 .*\(beside the 2 that validate"
    ):
        train(tmp_path / "run", "data=folder", f"data.root={tree}", "batch.classes_per_batch=5", "evaluator.ks=[1]",
              "batch.samples_per_class=2")  # fmt: skip
    assert "training: 12 images of 4 classes" in caplog.text and "2 of 6 training classes, not 1" in caplog.text


def test_the_row_has_all_parts_and_notes(tmp_path):
    tree = write_images(tmp_path / "tree", classes=12, images=3)
    (tree / "class1" / "2.png").unlink()
    run = train(tmp_path / "run", "data=folder", f"data.root={tree}", "batch.classes_per_batch=2", "evaluator.ks=[1]",
                "batch.samples_per_class=2", "loader.workers=0", "trainer.max_steps=1")  # fmt: skip
    row = json.loads((run.folder / "metrics.json").read_text())["row"]
    sizes = {name: (part["images"], part["classes"]) for name, part in row["parts"].items()}
    assert sizes["test"] == (18, 6) and sizes["train"][1] == 4 and sizes["validation"][1] == 2
    assert sizes["train"][0] + sizes["validation"][0] == 17
    assert {part["largest_class"] for part in row["parts"].values()} == {3}
    assert min(part["smallest_class"] for part in row["parts"].values()) == 2
    (note,) = row["notes"]
    assert "2 of 6 training classes, not 1" in note
