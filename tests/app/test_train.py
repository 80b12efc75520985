"""run_train: the files of a run, what they say, and what decides them."""

import csv
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dml.report.lines import panels
from tests.app.conftest import evaluate, train

STEPS = ("trainer.max_steps=6", "trainer.val_check_interval=3", "scheduler=none")


def written(run):
    return json.loads((run.folder / "metrics.json").read_text())


def test_files_of_a_run(finished):
    assert sorted(path.name for path in (finished.folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    config = OmegaConf.load(finished.folder / "config.yaml")
    assert config.seed == 0 and config.scheduler.steps == 12 and "${" not in OmegaConf.to_yaml(config)
    carried = finished.checkpoint()["dml_config"]
    assert carried.pop("code") == written(finished)["row"]["code"]
    assert carried == OmegaConf.to_container(config)
    assert finished.checkpoint()["global_step"] == 12

    image = Image.open(finished.folder / "embedding.png")
    image.load()
    assert image.format == "PNG" and min(image.size) >= 400 and len(image.convert("RGB").getcolors(10**6)) > 10
    stored = np.load(finished.folder / "test_embeddings.npz")
    assert stored["embeddings"].shape == (450, 2) and np.isfinite(stored["embeddings"]).all()
    assert sorted(np.unique(stored["labels"])) == list(range(10))


def test_metrics_of_a_run(finished):
    metrics = written(finished)["metrics"]
    assert metrics == finished.metrics
    names = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "map", "mrr", "nmi")
    assert set(metrics) == {"val/map", *(f"test/{name}" for name in names)}
    assert all(0 <= value <= 1 for value in metrics.values())


def test_the_row_says_what_decides_the_result(finished):
    row = written(finished)["row"]
    assert row["data"] == "digits" and row["train_classes"] == 10 and row["train_images"] == 1146
    assert row["loss"]["_target_"].endswith("NRALoss") and row["loss"]["alpha"] == 4.0
    assert row["sampler"]["classes_per_batch"] == 10 and row["batch"] == 50
    assert (row["backbone"], row["weights"], row["dimension"], row["freeze_bn"]) == ("convnet", "random", 2, False)
    assert row["transform"]["size"] == 28 and row["optimizer"]["lr"] == 0.003
    assert row["normalize"] == {"training": False, "test": False} and row["engine"] == {}
    assert row["protocol"]["name"] == "validated" and row["split"]["val_fraction"] == 0.15
    assert (row["seed"], row["steps"], row["leaked"]) == (0, 12, False)
    assert row["evaluated_step"] == finished.checkpoint("best")["global_step"] in (5, 10)  # not the last, 12
    assert torch.__version__.startswith(row["versions"]["torch"]) and "pytorch-lightning" in row["versions"]


def test_the_curves_go_on_after_the_step_that_is_tested(finished):
    best, last = finished.checkpoint("best"), finished.checkpoint()
    whole = last["callbacks"]["History"]["curves"]
    assert whole["train/loss"][-1][0] == 12 and best["callbacks"]["History"]["curves"] != whole
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    shown = panels(whole, best["global_step"])
    assert len(shown) == 3 and all(line["path"] in page for panel in shown for line in panel["lines"])
    assert page.count(f"tested: step {best['global_step']}<") == 3


def test_the_seed_decides_the_result(tmp_path):
    first, again = (train(tmp_path / name, *STEPS) for name in "ab")
    other = train(tmp_path / "c", *STEPS, "seed=1")
    assert first.metrics == again.metrics
    weights, same, different = (run.checkpoint()["state_dict"] for run in (first, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert first.metrics != other.metrics
    assert not torch.equal(weights["embedder.head.weight"], different["embedder.head.weight"])


def test_the_evaluated_checkpoint_is_the_one_that_validation_chose(tmp_path, monkeypatch):
    from dml.retrieval.evaluator import Evaluator

    scores, evaluate = [0.0, 0.3, 0.9, 0.1], Evaluator.__call__  # the first before the first step

    def scripted(self, *args, **kwargs):
        found = evaluate(self, *args, **kwargs)
        return {**found, "map": scores.pop(0)} if scores else found

    monkeypatch.setattr(Evaluator, "__call__", scripted)
    run = train(tmp_path, "trainer.max_steps=7", "trainer.val_check_interval=2", "scheduler=none")
    assert run.metrics["val/map"] == pytest.approx(0.9)
    assert written(run)["row"]["evaluated_step"] == run.checkpoint("best")["global_step"] == 4
    assert written(run)["row"]["steps"] == 7


def test_paper_protocol_evaluates_the_last_model_and_chooses_nothing(tmp_path):
    run = train(tmp_path, *STEPS, "protocol=paper", "logger=csv")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    row = written(run)["row"]
    assert row["evaluated_step"] == row["steps"] == 6 and row["protocol"]["name"] == "paper" and not row["leaked"]
    assert row["train_images"] == 1347  # nothing is held out
    assert run.metrics and all(name.startswith("test/") for name in run.metrics)
    header = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "val/" not in header and "watched_test/" not in header


def test_watching_the_test_classes_marks_the_row(tmp_path):
    run = train(tmp_path, *STEPS, "protocol=paper", "protocol.watch_test=true", "logger=csv")
    assert written(run)["row"]["leaked"] is True
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert all(name.startswith("test/") for name in run.metrics)
    header = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "watched_test/map" in header and not any(name.startswith("val/") for name in header)


def test_cross_entropy_learns_its_sizes(tmp_path):
    run = train(tmp_path, *STEPS, "method=cross_entropy", "embedder.dim=5")
    loss = written(run)["row"]["loss"]
    assert (loss["num_classes"], loss["embedding_dim"]) == (10, 5)
    assert run.checkpoint()["state_dict"]["loss.classifier.weight"].shape == (10, 5)
    assert not (tmp_path / "embedding.png").exists()  # five dimensions are no picture


def test_csv_logger(tmp_path):
    run = train(tmp_path, *STEPS, "logger=csv", "trainer.log_every_n_steps=1")
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    (tested,) = [row for row in rows if row["test/recall@1"]]
    assert float(tested["test/recall@1"]) == pytest.approx(run.metrics["test/recall@1"], rel=1e-6)
    assert len([row for row in rows if row["train/loss"]]) == 6
    assert max(float(row["val/map"]) for row in rows if row["val/map"]) == pytest.approx(run.metrics["val/map"])


def test_learning_learns(tmp_path):
    run = train(tmp_path, "trainer.max_steps=60", "trainer.val_check_interval=60", "scheduler=none")
    assert run.metrics["test/map"] > 0.45  # by chance 0.1; untrained 0.35


def test_a_row_tells_runs_of_other_data_and_other_training_apart(tmp_path):
    rows = {}
    for name, override in {
        "plain": "seed=0",
        "split": "data.split_seed=1",
        "interval": "trainer.val_check_interval=1",
        "clipped": "+trainer.gradient_clip_val=0.01",
        "threads": "threads=1",
    }.items():
        train(tmp_path / name, override)
        rows[name] = json.loads((tmp_path / name / "metrics.json").read_text())["row"]
    assert rows["split"]["test"] != rows["plain"]["test"] and rows["split"]["split"]["split_seed"] == 1
    assert rows["interval"]["trainer"] != rows["plain"]["trainer"] != rows["clipped"]["trainer"]
    assert rows["threads"] == rows["plain"]


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_what_a_cpu_would_compute_otherwise_is_refused(tmp_path, precision):
    with pytest.raises(ValueError, match=rf"trainer\.precision={precision} needs a GPU"):
        train(tmp_path, f"trainer.precision={precision}")


def test_mixed_precision_from_training_to_evaluation(tmp_path):
    run = train(tmp_path / "run", *STEPS, "trainer.precision=bf16-mixed", "optimizer.fused=true")
    best = run.folder / "checkpoints" / "best.ckpt"
    again = evaluate(tmp_path / "again", best, "trainer.precision=bf16-mixed").metrics
    assert again == {name: value for name, value in run.metrics.items() if name.startswith("test/")}
    exact = evaluate(tmp_path / "exact", best).metrics
    assert exact != again and exact == pytest.approx(again, abs=0.05)


def test_transforms_of_torchvision_from_training_to_evaluation(tmp_path):
    augment = "{_target_: torchvision.transforms.v2.ColorJitter, brightness: 0.5}"
    run = train(tmp_path / "run", *STEPS, f"transform.augment=[{augment}]")
    node = {"_target_": "torchvision.transforms.v2.ColorJitter", "brightness": 0.5}
    assert written(run)["row"]["transform"]["augment"] == [node]
    plain, workers = (train(tmp_path / name, *STEPS, *given) for name, given in (
        ("plain", ()), ("workers", (f"transform.augment=[{augment}]", "loader.workers=2"))
    ))  # fmt: skip
    weights = [one.checkpoint()["state_dict"]["embedder.head.weight"] for one in (run, plain, workers)]
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    again = evaluate(tmp_path / "again", run.folder / "checkpoints" / "best.ckpt").metrics  # it needs no trust
    assert again == {name: value for name, value in run.metrics.items() if name.startswith("test/")}
    with pytest.raises(ValueError, match=r"^transform\.augment\.0\.brightnes is no key: there is brightness"):
        train(tmp_path / "wrong", f"transform.augment=[{augment.replace('ness', 'nes')}]")
