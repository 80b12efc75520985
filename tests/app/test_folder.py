"""A run's folder: a sweep that was broken off goes on with the same command, and nothing finished is lost."""

import errno
import fcntl
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from dml.app import folder as folders
from dml.app.folder import held
from tests.app.conftest import ROOT, Run, evaluate, train
from tests.app.test_processes import SHORT, end, start
from tests.app.test_resume import assert_same_end

STEPS = ("trainer.max_steps=40", "trainer.val_check_interval=20")


def test_a_sweep_killed_in_its_second_job_ends_as_one_that_was_not(tmp_path):
    command = (
        "train.py",
        "-m",
        *SHORT,
        "seed=0,1",
        *STEPS,
        "checkpoint_minutes=0.00001",
        f"hydra.sweep.dir={tmp_path}",
    )
    process = start(*command)
    last, deadline = tmp_path / "1" / "checkpoints" / "last.ckpt", time.monotonic() + 60
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    end(process)
    assert not (tmp_path / "1" / "metrics.json").exists()
    first = (tmp_path / "0" / "metrics.json").read_bytes()
    broken_off = torch.load(last, weights_only=True)["global_step"]
    assert 0 < broken_off < 40

    code, out, err = end(start(*command))
    assert code == 0, err
    assert out.count("not run again") == 1 and (tmp_path / "0" / "metrics.json").read_bytes() == first
    # The one in this process writes no checkpoint in between.
    assert_same_end(Run(tmp_path / "1", {}), train(tmp_path / "straight", "seed=1", *STEPS, "checkpoint_minutes=5"))
    assert json.loads((tmp_path / "1" / "metrics.json").read_text())["row"]["steps"] == 40


def test_a_finished_folder_is_left_as_it_is(tmp_path):
    run = train(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert train(tmp_path).metrics == run.metrics
    # Who carries it out does not matter, what comes out of it does.
    assert train(tmp_path, "loader.workers=1", "threads=1").metrics == run.metrics
    with pytest.raises(ValueError, match=rf"{tmp_path} holds .* other settings of seed \(then 0, now 1\)"):
        train(tmp_path, "seed=1")
    with pytest.raises(ValueError, match=r"trainer\.max_steps \(then 3, now 4\)"):
        train(tmp_path, "trainer.max_steps=4")
    with pytest.raises(ValueError, match=r"engine\.micro_batch \(then None, now 16\)"):
        train(tmp_path, "engine.micro_batch=16")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_other_code_does_not_pass_for_the_same_result(tmp_path, monkeypatch):
    train(tmp_path)
    monkeypatch.setattr("dml.app.run.code_version", lambda _: "another")
    with pytest.raises(ValueError, match=rf"{tmp_path} holds a run that another version of the code finished"):
        train(tmp_path)


def test_an_unfinished_run_of_other_settings_is_not_mixed_in(tmp_path):
    train(tmp_path)
    (tmp_path / "metrics.json").unlink()
    config = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=rf"{tmp_path} holds .* other settings of loss\.alpha \(then 4\.0, now 2\)"):
        train(tmp_path, "loss.alpha=2")
    assert (tmp_path / "config.yaml").read_bytes() == config


def test_an_unfinished_run_of_other_code_goes_on_only_if_asked_to(tmp_path, monkeypatch):
    metrics = train(tmp_path / "a").metrics
    (tmp_path / "a" / "metrics.json").unlink()
    monkeypatch.setattr("dml.app.run.code_version", lambda _: "another")
    with pytest.raises(ValueError, match="another version of the code began"):
        train(tmp_path / "a")
    assert train(tmp_path / "b", f"resume={tmp_path / 'a'}").metrics == metrics


def test_a_finished_run_of_before_there_were_fingerprints_is_kept(tmp_path):
    train(tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    del content["row"]["code"]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match="another version of the code finished"):
        train(tmp_path)


def test_a_run_killed_while_it_tests_only_tests_again(tmp_path):
    run = train(tmp_path)
    (tmp_path / "metrics.json").unlink()
    step = run.checkpoint()["global_step"]
    assert train(tmp_path).metrics == run.metrics
    assert run.checkpoint()["global_step"] == step


def test_a_csv_log_survives_going_on(tmp_path):
    train(tmp_path, "logger=csv", "trainer.log_every_n_steps=1")
    (log,) = tmp_path.rglob("metrics.csv")
    before = log.read_bytes()
    (tmp_path / "metrics.json").unlink()
    train(tmp_path, "logger=csv", "trainer.log_every_n_steps=1")
    assert log.read_bytes() == before and before


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match=rf"no lock on {tmp_path}/\.lock: .*No locks available"), held(tmp_path):
        pass


def test_two_processes_never_share_a_folder(tmp_path, monkeypatch, finished):
    code = (
        "import time; from pathlib import Path; from dml.app.folder import held\n"
        f"with held(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        monkeypatch.setattr(folders, "_PATIENCE", 0.2)
        with pytest.raises(ValueError, match=f"another process is running in {tmp_path}"):
            train(tmp_path)
        with pytest.raises(ValueError, match=f"another process is running in {tmp_path}"):
            evaluate(tmp_path, finished.folder / "checkpoints" / "best.ckpt")
    finally:
        process.kill()
        process.wait()
    with held(tmp_path):
        pass
