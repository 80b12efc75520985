"""W&B may be unreachable, fall silent or die: a run neither stops nor waits for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb

from dml.engine import wandb_logger
from dml.engine.wandb_logger import UnattendedWandbLogger

# As much of a server as a run asks for; it says its port.
SERVER = """
import json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_POST(self):
        body, data = self.rfile.read(int(self.headers["Content-Length"])), {}
        if self.path == "/graphql":
            asked = json.loads(body)
            project = {"id": "p", "name": "dml", "entity": {"id": "e", "name": "us"}}
            bucket = {"id": "r", "name": asked["variables"].get("name"), "displayName": "r", "project": project}
            data = {
                "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
                "RunResumeStatus": {"model": None},
                "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
            }.get(asked["operationName"], {})
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture(autouse=True)
def account(monkeypatch, tmp_path):
    """An account of nobody, and a W&B that has not read the environment yet."""
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb_logger.finish()
    wandb.teardown()
    os.environ.pop("WANDB_SILENT", None)


@pytest.fixture
def server():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def begin(folder, port, monkeypatch, **settings):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    limits = {"silent": True, "init_timeout": 20, "finish_timeout": 2, **settings}
    return UnattendedWandbLogger(save_dir=str(folder), project="dml", offline=False, settings=limits)


def test_to_send_without_a_login_is_refused(tmp_path):
    logger = UnattendedWandbLogger(save_dir=str(tmp_path), offline=False)
    with pytest.raises(ValueError, match=r"^logger\.offline=false is not possible: .*wandb login"):
        logger.log_hyperparams({"seed": 0})


def test_a_server_that_cannot_be_reached_leaves_the_run_offline(tmp_path, monkeypatch, caplog):
    logger = begin(tmp_path, 9, monkeypatch, init_timeout=1)  # nobody listens there
    before = time.monotonic()
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"train/loss": 1.0}, 3)
    assert time.monotonic() - before < 30
    assert caplog.text.count("W&B cannot be reached") == 1 and "connection refused" in caplog.text
    assert not logger.lost and logger.experiment.summary["train/loss"] == 1.0
    wandb_logger.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "silent"])
def test_a_server_that_goes_away_is_not_waited_for(tmp_path, monkeypatch, server, caplog, end):
    logger = begin(tmp_path, int(server.stdout.readline()), monkeypatch)
    logger.log_metrics({"train/loss": 1.0}, 0)
    assert not logger.experiment.offline
    server.send_signal(end)
    before = time.monotonic()
    for step in range(1, 500):
        logger.log_metrics({"train/loss": 1.0}, step)
    wandb_logger.finish()
    assert time.monotonic() - before < 30  # W&B would go on trying for days
    assert wandb.run is None and not logger.lost
    assert wandb_logger.__name__ not in {record.name for record in caplog.records}


def test_a_process_of_wandb_that_dies_is_told_once(tmp_path, caplog, capfd):
    logger = UnattendedWandbLogger(save_dir=str(tmp_path), settings={"silent": True})
    logger.log_metrics({"train/loss": 1.0}, 0)
    assert "anonymous" not in capfd.readouterr().err and "WANDB_MODE" not in os.environ
    (core,) = (
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdigit()
        and b"wandb-core" in (process / "cmdline").read_bytes()
        and f"PPid:\t{os.getpid()}\n" in (process / "status").read_text()
    )
    os.kill(core, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not logger.lost and time.monotonic() < deadline:
        logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_hyperparams({"seed": 0})
    assert logger.lost and caplog.text.count("W&B is gone") == 1
    wandb_logger.finish()
    assert "W&B could not close its run" in caplog.text
    # The next job of a sweep is not harmed.
    logger = UnattendedWandbLogger(save_dir=str(tmp_path / "next"), settings={"silent": True})
    logger.log_metrics({"train/loss": 2.0}, 0)
    wandb_logger.finish()
    assert not logger.lost and list((tmp_path / "next" / "wandb").glob("offline-run-*/run-*.wandb"))


def init(folder, monkeypatch, variables, **given):
    """What wandb.init would be given."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    default = {"name": "nra-digits-seed0", "group": "sweep"}
    logger = UnattendedWandbLogger(save_dir=str(folder), default=default, **given)._wandb_init
    return {key: logger[key] for key in ("mode", "project", "name", "group", "dir")}


def test_the_environment_wins_where_the_config_is_at_its_default(tmp_path, monkeypatch):
    usual = {"project": "dml", "name": "nra-digits-seed0", "group": "sweep", "dir": str(tmp_path), "mode": "offline"}
    assert init(tmp_path, monkeypatch, {}) == usual
    given = {"project": "mine", "name": "one", "group": "two", "offline": False}
    assert init(tmp_path, monkeypatch, {}, **given) == {
        **{"project": "mine", "name": "one", "group": "two", "dir": str(tmp_path), "mode": "online"},
    }
    variables = {
        **{"WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_RUN_GROUP": "g", "WANDB_MODE": "online"},
        "WANDB_DIR": str(tmp_path / "elsewhere"),
    }
    elsewhere = str(tmp_path / "elsewhere")
    assert init(tmp_path, monkeypatch, variables) == {
        **{"project": "p", "name": "n", "group": "g", "dir": elsewhere, "mode": "online"},
    }
    assert init(tmp_path, monkeypatch, variables, **given) == {
        **{"project": "mine", "name": "one", "group": "two", "dir": elsewhere, "mode": "online"},
    }


def test_what_wandb_reads_itself_it_still_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    logger = UnattendedWandbLogger(save_dir=str(tmp_path), settings={"silent": True}, default={"name": "x"})
    assert logger.experiment.tags == ("a", "b") and logger.experiment.entity == "us"
    assert logger.experiment.name == "x" and logger.experiment.project == "dml"
