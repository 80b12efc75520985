"""Runs of several processes: one folder, the same result as one process, and nothing of them left for the next job."""

import json

import pytest
import torch

from dml.app.launch import one_folder
from tests.app.conftest import ROOT, TRAIN, train, write_images
from tests.app.test_processes import end, start

# SGD: Adam turns the last digit of a gradient near 0 into a whole step.
SGD = ("optimizer=sgd", "optimizer.lr=0.01", "scheduler=none")
TWO = (*TRAIN, *SGD, "trainer=ddp", "trainer.devices=2")


def assert_as_one_process(folder, single):
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics == pytest.approx(single.metrics, abs=2e-3)
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(weights, single.checkpoint()["state_dict"], rtol=1e-3, atol=1e-5)


def test_jobs_of_two_processes_in_a_sweep(tmp_path):
    single = train(tmp_path / "single", *SGD)
    folder = tmp_path / "sweep"
    code, out, err = end(start("train.py", "-m", *TWO, "sampler.classes_per_batch=11,10", f"hydra.sweep.dir={folder}"))
    assert code == 1 and "Traceback" not in err
    assert "Job 0 failed: its processes ended with status 1" in err and "Job 1 failed" not in err
    assert err.count("sampler.classes_per_batch=11 is more than the 10") == 1 and out.count("Files: ") == 1
    assert {path.name for path in folder.iterdir()} == {"0", "1", "multirun.yaml"}
    assert_as_one_process(folder / "1", single)


def test_a_process_that_fails_ends_the_others(tmp_path):
    root = write_images(tmp_path / "images", 8, 8)
    broken = root / "class0" / "3.png"  # one of the two reads it in the first step, and the other waits for its rows
    broken.write_bytes(broken.read_bytes()[:60])
    batch = ("batch.classes_per_batch=4", "batch.samples_per_class=8", "protocol=paper")
    code, _, err = end(
        start(
            "train.py",
            *TWO,
            *batch,
            "experiment=digits",
            "data=folder",
            f"data.root={root}",
            f"hydra.run.dir={tmp_path}",
        )
    )
    assert code != 0 and f"the image {broken} cannot be read" in err


def test_torchrun_writes_into_one_folder(tmp_path):
    """Of a method whose sampler and loss see the embeddings of the whole training set: each process its share."""
    single = train(tmp_path / "single", *SGD, "method=htl")
    torchrun = ("torch.distributed.run", "--nproc_per_node=2", ROOT / "train.py")
    code, out, err = end(start("-m", *torchrun, *TWO, "method=htl", cwd=tmp_path))
    assert code == 0, err
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert f"Files: {folder}" in out
    assert_as_one_process(folder, single)


def test_a_folder_is_given_only_to_processes_that_cannot_name_one(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert one_folder(["train.py", "seed=1"]) == []
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert one_folder(["train.py", "seed=1"]) == []
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert one_folder(["train.py", "seed=1"]) == ["hydra.run.dir=outputs/slurm/71-0"]
    assert one_folder(["train.py", "hydra.run.dir=mine"]) == []
