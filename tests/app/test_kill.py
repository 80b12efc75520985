"""A run that is killed anywhere, and started again, ends as one that was not; files are whole or not there."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.app.conftest import ROOT, Run
from tests.app.test_resume import assert_equal, assert_same_end

# All that has a state: dropout, running statistics, momentum, a learning rate, a memory bank, patience.
SETTINGS = (  # an epoch has 22 batches, so some validations come with its end
    *("backbone.name=convnet_dropout", "method=memory", "loss.start_step=5", "loss.size=300"),
    *("scheduler=warmup_cosine", "protocol.patience=50", "trainer.max_steps=60", "trainer.val_check_interval=11"),
    *("checkpoint_minutes=0.00001", "evaluator.metrics=[recall,map]"),
)


class Server:
    """Starts runs, and tells how they ended."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.app.fork_server"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **order) -> int:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, folder: Path, *overrides: str, **how) -> int:
        return self.ask(folder=str(folder), overrides=[*SETTINGS, *overrides], **how)

    def run(self, folder: Path, *overrides: str, **how) -> int:
        return self.ask(wait=self.start(folder, *overrides, **how))


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.communicate()


@pytest.fixture(scope="module")
def straight(server, tmp_path_factory):
    """The run without a stop, and how long it took."""
    folder = tmp_path_factory.mktemp("straight")
    start = time.monotonic()
    assert server.run(folder) == 0, (folder / "said.txt").read_text()
    return finished(folder), time.monotonic() - start


def finished(folder: Path) -> Run:
    return Run(folder, json.loads((folder / "metrics.json").read_text()))


def assert_same(run: Run, expected: Run) -> None:
    assert run.metrics == expected.metrics  # the row of all that decides them, too
    assert_same_end(run, expected)
    best, wanted = run.checkpoint("best"), expected.checkpoint("best")
    assert best["global_step"] == wanted["global_step"]
    assert_equal(best["state_dict"], wanted["state_dict"], "best")


def steps_on_disk(folder: Path) -> list[int]:
    """Of each checkpoint; every one that is there must be whole."""
    files = folder.glob("checkpoints/*.ckpt")
    return [torch.load(file, weights_only=True)["global_step"] for file in files]


def campaign(server: Server, straight: Run, seconds: float, folder: Path, kills: int, seed: int, workers: int):
    """Kill runs at random moments until there were so many kills, and hold each that ends against `straight`.

    Returns:
        How many runs ended, and how many kills came while a file was written.
    """
    rng = random.Random(seed)
    lives = writing = 0
    life = folder / "0"
    while kills or life.exists():
        inside = bool(kills) and rng.random() < 0.4  # of a write, which is too short to be hit by chance
        die_at = (rng.choice(["fsync", "replace"]), rng.randint(1, 100)) if inside else None
        process = server.start(life, f"loader.workers={workers}", die_at=die_at)
        if kills and not inside:
            time.sleep(rng.uniform(0, seconds))
            # As Slurm and the kernel do it, with its data workers; or the first process alone.
            (os.killpg if rng.random() < 0.8 else os.kill)(process, signal.SIGKILL)
        status = server.ask(wait=process)
        assert status in (0, -signal.SIGKILL), (life / "said.txt").read_text()
        if status == 0:
            assert_same(finished(life), straight)
            lives += 1
            life = folder / str(lives)
            continue
        kills -= 1
        writing += any(life.rglob("*.part"))
        steps_on_disk(life)
    return lives, writing


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_random_moments_leave_no_trace(tmp_path, server, straight, workers):
    kills = int(os.environ.get("DML_KILLS", 4))
    lives, writing = campaign(server, *straight, tmp_path, kills, seed=kills, workers=workers)
    print(f"{kills} kills, {writing} of them while a file was written; {lives} runs ended as one without a kill")
    assert lives


@pytest.mark.parametrize("die_at", [("fsync", 1), ("replace", 31)], ids=str)
def test_a_kill_inside_of_a_write_leaves_the_file_before(tmp_path, server, straight, die_at):
    assert server.run(tmp_path, die_at=die_at) == -signal.SIGKILL
    assert bool(steps_on_disk(tmp_path)) == (die_at[1] > 1)
    assert server.run(tmp_path) == 0
    assert_same(finished(tmp_path), straight[0])


def wait_for(file: Path, process: int) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        os.kill(process, 0)  # it is there
        time.sleep(0.01)


@pytest.mark.parametrize(("name", "send", "workers"), [("SIGTERM", os.killpg, 2), ("SIGUSR1", os.kill, 0)])
def test_who_takes_the_machine_away_gets_a_checkpoint_and_a_status(tmp_path, server, straight, name, send, workers):
    rarely = ("checkpoint_minutes=60", f"loader.workers={workers}")
    process = server.start(tmp_path, *rarely)
    wait_for(tmp_path / "checkpoints" / "best.ckpt", process)
    send(process, getattr(signal, name))
    assert server.ask(wait=process) == 75
    (step,) = {torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]}
    said = (tmp_path / "said.txt").read_text()
    assert f"The state after step {step} is written. To continue: the same command with resume={tmp_path}" in said
    assert f"Stopped by {name}\n" in said
    assert 11 <= step < 60 and "Traceback" not in said
    assert server.run(tmp_path, *rarely) == 0
    assert_same(finished(tmp_path), straight[0])


def test_a_full_disk_is_an_error_and_costs_nothing(tmp_path, server, straight):
    process = server.start(tmp_path)
    wait_for(tmp_path / "checkpoints" / "best.ckpt", process)
    os.kill(process, signal.SIGTERM)
    assert server.ask(wait=process) == 75
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    assert server.run(tmp_path, max_bytes=len(before) // 2) == 1
    said = (tmp_path / "said.txt").read_text()
    assert f"cannot write {last}: File too large" in said and "Traceback" not in said
    assert last.read_bytes() == before and not list(tmp_path.rglob("*.part"))

    assert server.run(tmp_path) == 0
    assert_same(finished(tmp_path), straight[0])


def test_two_processes_that_are_stopped_and_killed_end_as_two_that_were_not(tmp_path, server):
    two = (
        "trainer=ddp",
        "trainer.devices=2",
        "loader.workers=2",
        "trainer.log_every_n_steps=3",
        "trainer.max_steps=35",
    )
    assert server.run(tmp_path / "straight", *two, processes=2) == 0, (tmp_path / "straight" / "said.txt").read_text()
    run = tmp_path / "run"
    process = server.start(run, *two, processes=2)
    wait_for(run / "checkpoints" / "best.ckpt", process)
    os.kill(process, signal.SIGTERM)  # the first; the other learns it from that
    assert server.ask(wait=process) == 75, (run / "said.txt").read_text()
    assert server.run(run, *two, processes=2, die_at=("replace", 8)) == -signal.SIGKILL
    assert server.run(run, *two, processes=2) == 0, (run / "said.txt").read_text()
    assert_same(finished(run), finished(tmp_path / "straight"))
