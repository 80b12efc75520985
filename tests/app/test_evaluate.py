"""run_evaluate: the same numbers again from the checkpoint alone, and others when asked for."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dml.retrieval.evaluator import Evaluator
from tests.app.conftest import evaluate, train, write_images
from tests.retrieval import oracle


def without_validation(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("test/")}


def test_best_gives_the_metrics_that_training_printed(finished, tmp_path):
    run = evaluate(tmp_path, finished.folder / "checkpoints" / "best.ckpt")
    assert run.metrics == without_validation(finished.metrics)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    before = json.loads((finished.folder / "metrics.json").read_text())
    assert stored["metrics"] == run.metrics
    for key in ("data", "loss", "backbone", "dimension", "seed", "protocol", "evaluated_step", "leaked", "parts"):
        assert stored["row"][key] == before["row"][key], key


def test_last_is_another_model(finished, tmp_path):
    run = evaluate(tmp_path, finished.folder / "checkpoints" / "last.ckpt")
    assert run.metrics != without_validation(finished.metrics)


def test_overrides_change_just_what_they_name(finished, tmp_path):
    best = finished.folder / "checkpoints" / "best.ckpt"
    run = evaluate(tmp_path / "a", best, "evaluator.ks=[1,16]", "evaluator.metrics=[recall,nmi]")
    assert set(run.metrics) == {"test/recall@1", "test/recall@16", "test/nmi"}
    assert run.metrics["test/recall@1"] == finished.metrics["test/recall@1"]
    normalized = evaluate(tmp_path / "b", best, "evaluator.normalize=true")
    assert normalized.metrics["test/map"] != finished.metrics["test/map"]
    assert json.loads((tmp_path / "b" / "evaluation.json").read_text())["row"]["normalize"]["test"] is True


def test_other_images(finished, tmp_path):
    tree = write_images(tmp_path / "tree", classes=4, images=3)
    best = finished.folder / "checkpoints" / "best.ckpt"
    run = evaluate(tmp_path / "run", best, "data=folder", f"data.root={tree}", "evaluator.ks=[1]")
    assert set(run.metrics) >= {"test/recall@1"}
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["row"]["data"] == "tree"


def test_a_loss_with_weights_of_its_own_is_evaluated_too(tmp_path):
    trained = train(tmp_path / "run", "method=cross_entropy", "protocol=paper", "trainer.max_steps=2")
    run = evaluate(tmp_path / "again", trained.folder / "checkpoints" / "last.ckpt")
    assert run.metrics == trained.metrics


def test_other_rankings_have_names_of_their_own(finished, tmp_path):
    best = finished.folder / "checkpoints" / "best.ckpt"
    run = evaluate(tmp_path, best, "evaluator=expanded", "evaluator.normalize=true", "evaluator.also.qe.neighbours=3")
    plain = {name for name in run.metrics if name.count("/") == 1}
    assert plain == {name for name in finished.metrics if name.startswith("test/")}
    ranked = {name.removeprefix("test/") for name in plain} - {"nmi"}
    assert set(run.metrics) - plain == {f"test/{also}/{name}" for also in ("qe", "dba") for name in ranked}
    row = json.loads((tmp_path / "evaluation.json").read_text())["row"]
    assert row["also"]["qe"]["neighbours"] == 3
    said = r"evaluator\.also\.rerank\.k1=9999 is more than the 449 neighbours"
    with pytest.raises(ValueError, match=said):
        evaluate(tmp_path / "b", best, "evaluator=reranked", "evaluator.also.rerank.k1=9999")


def test_several_checkpoints_side_by_side(finished, tmp_path):
    best, last = (finished.folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    once = evaluate(tmp_path / "a", best, "evaluator.normalize=true")
    twice = evaluate(tmp_path / "b", best, "evaluator.normalize=true", beside=[best])
    assert twice.metrics == pytest.approx(once.metrics, abs=2e-3)  # the same distances, but for rounding
    both = evaluate(tmp_path / "c", best, "evaluator.normalize=true", beside=[last])
    row = json.loads((tmp_path / "c" / "evaluation.json").read_text())["row"]
    assert row["dimension"] == 4 and [one["checkpoint"] for one in row["joined"]] == [str(best), str(last)]
    parts = [
        np.load(evaluate(tmp_path / name, path).folder / "test_embeddings.npz")
        for name, path in (("d", best), ("e", last))
    ]
    x = np.concatenate([oracle.normalised(part["embeddings"]) for part in parts], axis=1)
    wanted = Evaluator(metrics=["recall", "map"])(x, parts[0]["labels"])
    assert {name: both.metrics[f"test/{name}"] for name in wanted} == pytest.approx(wanted, abs=1e-3)


def test_checkpoints_of_other_images_do_not_stand_side_by_side(finished, tmp_path):
    best = finished.folder / "checkpoints" / "best.ckpt"
    stored = finished.checkpoint("best")
    stored["dml_config"]["transform"]["fill"] = 7
    stored["dml_config"]["transform"]["degrees"] = 7  # no test image is turned
    del stored["dml_config"]["transform"]["resize_side"]  # as a version that did not have it: the default
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match=r"other\.ckpt was tested on images of another transform .*: fill \(0, here 7\)"
    ):
        evaluate(tmp_path / "run", best, beside=[tmp_path / "other.ckpt"])
    run = evaluate(tmp_path / "run", best, "transform.fill=0", beside=[tmp_path / "other.ckpt"])
    assert "test/recall@1" in run.metrics


def test_checkpoints_that_cannot_be_used(finished, tmp_path):
    good = (finished.folder / "checkpoints" / "last.ckpt").read_bytes()

    (tmp_path / "truncated.ckpt").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.ckpt").write_text("weights")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    stored = finished.checkpoint()
    stored["dml_config"]["embedder"]["dim"] = 3
    torch.save(stored, tmp_path / "other.ckpt")
    for name, said in (
        ("truncated", "cannot be read as a checkpoint"),
        ("text", "cannot be read as a checkpoint"),
        ("foreign", "no checkpoint of a run of train.py"),
        ("missing", "does not exist"),
    ):
        with pytest.raises(ValueError, match=rf"^ckpt_path=\S*{name}\.ckpt .*{said}"):
            evaluate(tmp_path / "run", tmp_path / f"{name}.ckpt")
    with pytest.raises(ValueError, match=r"ckpt_path=\S*other\.ckpt holds another model"):
        evaluate(tmp_path / "run", tmp_path / "other.ckpt")


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"dml_config": {}, "state_dict": {}, "global_step": 1, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="cannot be read"):
        evaluate(tmp_path / "run", tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_too_many_neighbours(finished, tmp_path):
    with pytest.raises(ValueError, match=r"evaluator\.ks"):
        evaluate(tmp_path, finished.folder / "checkpoints" / "best.ckpt", "evaluator.ks=[1,450]")


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory):
    """A run whose training part are class0 to class3 of 8, two of which validated."""
    root = tmp_path_factory.mktemp("of_folder")
    tree = write_images(root / "tree", classes=8, images=3)
    settings = ("model=convnet", "data.val_fraction=0.5", "evaluator.ks=[1]", "batch.classes_per_batch=2")
    sizes = ("batch.samples_per_class=2", "trainer.max_steps=2", "loader.workers=0")
    return tree, train(root / "run", "data=folder", f"data.root={tree}", *settings, *sizes)


def row(run):
    return json.loads((run.folder / "evaluation.json").read_text())["row"]


def test_the_row_tells_apart_what_trained_and_what_is_tested(of_folder, tmp_path):
    _, trained = of_folder
    new = write_images(tmp_path / "new", classes=3, images=2)
    for c in range(3):
        (new / f"class{c}").rename(new / f"other{c}")
        Image.new("RGB", (9, 9), (c, 1, 2)).save(new / f"other{c}" / "0.png")
        Image.new("RGB", (9, 9), (c, 1, 3)).save(new / f"other{c}" / "1.png")
    best, before = (
        trained.folder / "checkpoints" / "best.ckpt",
        json.loads((trained.folder / "metrics.json").read_text()),
    )
    for i, given in enumerate((["data=folder", f"data.root={new}"], [f"data.root={new}"], [f"data.test_root={new}"])):
        found = row(evaluate(tmp_path / str(i), best, *given, "trainer.max_steps=7"))
        assert (found["data"], found["trained_on"]) == ("new", "tree")
        assert (found["train_images"], found["train_classes"]) == (6, 2)
        assert found["tested"] == {"images": 6, "classes": 3, "gallery_images": None, "precision": "32-true"}
        assert found["trainer"] == {k: v for k, v in before["row"]["trainer"].items() if k in found["trainer"]}
        assert found["trainer"]["max_steps"] == 2 and found["train_split"]["train_fraction"] == 0.5
        assert found["leaked"] is False and found["leak"] is None and found["class_disjoint"]


def test_the_test_part_of_the_training_is_what_it_was(of_folder, tmp_path):
    tree, trained = of_folder
    best = trained.folder / "checkpoints" / "best.ckpt"
    again = evaluate(tmp_path / "again", best)
    assert again.metrics == without_validation(trained.metrics) and row(again)["leaked"] is False
    shutil.copytree(tree, tmp_path / "moved")
    moved = evaluate(tmp_path / "there", best, f"data.root={tmp_path / 'moved'}", "data.train_fraction=0.5")
    assert moved.metrics == again.metrics and row(moved)["leaked"] is False


@pytest.mark.parametrize(
    ("given", "leak"),
    [
        # All classes of what trained; the same images by other names; the same names with other images.
        ("data.root={tree}", "4 of 8 tested classes .*the first: class0.*; 12 of 24 tested images were trained on"),
        ("data.train_fraction=0.25", "2 of 6 tested classes .*the first: class2.*; 6 of 18"),
        ("data.root={renamed}", "^12 of 24 tested images were trained on$"),
        ("data.root={others}", "^4 of 8 tested classes have the name of one that was trained on"),
    ],
)
def test_what_was_trained_on_marks_the_row(of_folder, tmp_path, caplog, given, leak):
    tree, trained = of_folder
    shutil.copytree(tree, tmp_path / "renamed")
    shutil.copytree(tree, tmp_path / "others")
    for i, folder in enumerate(sorted((tmp_path / "renamed").iterdir())):
        folder.rename(folder.with_name(f"x{i}"))
    for i, image in enumerate(sorted((tmp_path / "others").rglob("*.png"))):
        Image.new("RGB", (5, 5), (i, 7, 7)).save(image)
    given = given.format(tree=tree, renamed=tmp_path / "renamed", others=tmp_path / "others")
    found = row(evaluate(tmp_path / "run", trained.folder / "checkpoints" / "best.ckpt", given))
    assert found["leaked"] is True and found["class_disjoint"] is False
    assert re.search(leak, found["leak"]) and found["leak"] in caplog.text


def test_a_checkpoint_that_does_not_say_what_trained_it(of_folder, tmp_path, caplog):
    stored = of_folder[1].checkpoint("best")
    del stored["trained_on"]
    torch.save(stored, tmp_path / "old.ckpt")
    found = row(evaluate(tmp_path / "run", tmp_path / "old.ckpt"))
    assert (
        found["leaked"] is found["class_disjoint"] is None and "unknown" in found["leak"] and "unknown" in caplog.text
    )
    assert found["train_images"] is None and found["train_classes"] is None


def test_training_images_alone_are_not_evaluated(of_folder, tmp_path):
    tree, trained = of_folder
    with pytest.raises(ValueError, match=r"data\.train_root is given alone: .*data\.test_root=DIR"):
        evaluate(tmp_path, trained.folder / "checkpoints" / "best.ckpt", f"data.train_root={tree}")
