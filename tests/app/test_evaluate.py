"""run_evaluate: the same numbers again from the checkpoint alone, and others when asked for."""

import json

import pytest
import torch

from tests.app.conftest import evaluate, train, write_images


def without_validation(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("test/")}


def test_best_gives_the_metrics_that_training_printed(finished, tmp_path):
    run = evaluate(tmp_path, finished.folder / "checkpoints" / "best.ckpt")
    assert run.metrics == without_validation(finished.metrics)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    before = json.loads((finished.folder / "metrics.json").read_text())
    assert stored["metrics"] == run.metrics
    for key in ("data", "loss", "backbone", "dimension", "seed", "protocol", "evaluated_step", "leaked"):
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
        # What the command line says before Hydra starts; no stack.
        with pytest.raises(SystemExit, match=rf"^ckpt_path=\S*{name}\.ckpt .*{said}"):
            evaluate(tmp_path / "run", tmp_path / f"{name}.ckpt")
    with pytest.raises(ValueError, match=r"ckpt_path=\S*other\.ckpt holds another model"):
        evaluate(tmp_path / "run", tmp_path / "other.ckpt")


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"dml_config": {}, "state_dict": {}, "global_step": 1, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(SystemExit, match="cannot be read"):
        evaluate(tmp_path / "run", tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_too_many_neighbours(finished, tmp_path):
    with pytest.raises(ValueError, match=r"evaluator\.ks"):
        evaluate(tmp_path, finished.folder / "checkpoints" / "best.ckpt", "evaluator.ks=[1,450]")
