"""What only a process shows: exit codes, the console, signals, sweeps. Each start costs seconds; hence few."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
from wandb.proto.wandb_internal_pb2 import Record

from tests.app.conftest import DIGITS, QUIET, ROOT

SHORT = (*QUIET, DIGITS, "logger=none")
SECRET = "local-" + 34 * "5e"  # in the environment of every process that is started here


def start(script, *arguments, cwd=ROOT):
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "WANDB_API_KEY": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C and hand that on; this one is about to get it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_a_mistake_is_a_message_without_a_stack(tmp_path):
    wrong = ("sampler.classes_per_batch=11", "evaluator.ks=[9999]")
    code, out, err = end(start("train.py", *SHORT, *wrong, f"hydra.run.dir={tmp_path}"))
    assert code == 1
    assert "sampler.classes_per_batch=11 is more than the 10 training classes" in err
    assert "evaluator.ks=[9999] asks for more neighbours" in err
    assert "Traceback" not in out + err and "/dml/" not in out + err


def test_evaluate_on_the_command_line(tmp_path, finished):
    best = finished.folder / "checkpoints" / "best.ckpt"
    changed = ("evaluator.ks=[1,16]", "evaluator.normalize=true")
    code, out, err = end(start("evaluate.py", *QUIET, f"ckpt_path={best}", *changed, f"hydra.run.dir={tmp_path}"))
    assert code == 0, err
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    recalls = {name for name in stored["metrics"] if "recall" in name}
    assert recalls == {"test/recall@1", "test/recall@16"} and all(name in out for name in recalls)
    assert stored["row"]["normalize"]["test"] is True
    assert stored["metrics"]["test/map"] != finished.metrics["test/map"]


def test_ctrl_c_writes_the_last_checkpoint(tmp_path):
    long = ("trainer.max_steps=1000000", "trainer.val_check_interval=5")
    process = start("train.py", *SHORT, *long, f"hydra.run.dir={tmp_path}")
    folder, deadline = tmp_path / "checkpoints", time.monotonic() + 60
    while not (folder / "best.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert code == 130, out + err
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    assert stored["global_step"] >= 5 and stored["dml_config"]["seed"] == 0
    assert "Traceback" not in err
    assert not (tmp_path / "metrics.json").exists()  # it is no finished run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    steps = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")
    code, _, err = end(
        start("train.py", "-m", *SHORT, *steps, "logger=wandb", "method=nra,cross_entropy", f"hydra.sweep.dir={folder}")
    )
    assert code == 0, err
    return folder


def wandb_records(path):
    """The records of a .wandb file: W&B's messages in LevelDB's log format (blocks of 32 KiB)."""
    data = path.read_bytes()
    assert data.startswith(b":W&B")
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        chunk, at = data[at + 7 : at + 7 + size], at + 7 + size
        record = chunk if kind in (1, 2) else record + chunk  # whole or first; middle or last
        if kind in (1, 4):
            yield Record.FromString(record)


def test_wandb_offline_holds_the_run(sweep):
    for job, loss in enumerate(("NRALoss", "CrossEntropyLoss")):
        (path,) = sweep.glob(f"{job}/wandb/offline-run-*/run-*.wandb")  # each job a run of its own
        history, config, runs = {}, {}, []
        for record in wandb_records(path):
            for item in record.history.item:
                history.setdefault(item.key or ".".join(item.nested_key), []).append(json.loads(item.value_json))
            runs += [record.run] if record.HasField("run") else []
            for item in record.config.update:
                config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        metrics = json.loads((sweep / str(job) / "metrics.json").read_text())["metrics"]
        assert history["test/recall@1"] == pytest.approx([metrics["test/recall@1"]])
        assert len(history["train/loss"]) == 4 and history["trainer/global_step"][:1] == [0]
        assert max(history["val/map"]) == pytest.approx(metrics["val/map"])
        assert "test/embedding.filenames" in history
        for name in ("learning_rate", "images_per_second", "peak_memory_gb"):
            assert len(history[f"train/{name}"]) == 4 and min(history[f"train/{name}"]) >= 0
        name = ("nra", "cross_entropy")[job]
        assert (runs[0].project, runs[0].display_name, runs[0].run_group) == ("dml", f"{name}-digits-seed0", sweep.name)
        assert config["loss"]["_target_"].endswith(loss) and config["trainer"]["max_steps"] == 4
        assert config["optimizer"]["lr"] == 0.003 and config["seed"] == 0


def test_no_file_of_a_run_holds_the_key_of_wandb(sweep):
    written = [path for path in sweep.rglob("*") if path.is_file()]
    assert {".wandb", ".ckpt", ".json", ".log", ".yaml", ".npz"} <= {path.suffix for path in written}
    for path in written:
        content = path.read_bytes()
        assert SECRET.encode() not in content and SECRET[6:].encode() not in content, path


def test_a_sweep_is_one_folder_a_job(sweep):
    rows = [json.loads((sweep / str(job) / "metrics.json").read_text())["row"] for job in range(2)]
    assert [row["loss"]["_target_"].rpartition(".")[2] for row in rows] == ["NRALoss", "CrossEntropyLoss"]
    assert rows[1]["loss"]["num_classes"] == 10 and rows[1]["loss"]["embedding_dim"] == 2
