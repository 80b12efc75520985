"""Sweeps: how their folder is named, what is refused, and the launchers that run several jobs at once."""

import fcntl
import importlib.util
import json
import os
import re

import pytest
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict

from dml.app import sweep
from dml.app.sweep import SweepNamedByCommand, WorkerOfJoblib, share
from tests.app.conftest import TRAIN, composed, train
from tests.app.test_processes import end, start


def needs(plugin, extra="sweep"):
    found = importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{plugin}")
    return pytest.mark.skipif(not found, reason=f"{plugin} comes with the extra [{extra}]")


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())["metrics"]


def named(*overrides: str, folder: str = "", hydra: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    given = {"task": list(overrides), "hydra": list(hydra)}
    sweeper = {"_target_": "x.BasicSweeper"}
    config = OmegaConf.create({"hydra": {"sweep": {"dir": folder}, "overrides": given, "sweeper": sweeper}})
    OmegaConf.set_readonly(config, True)
    callback: Callback = SweepNamedByCommand()
    callback.on_multirun_start(config)
    return config.hydra.sweep.dir, list(config.hydra.overrides.hydra)


def test_a_sweep_is_named_by_its_command():
    name, handed_on = named("method=nra,triplet", "data.root=/a/b c", "seed=0,1")
    assert re.fullmatch(r"multirun/method-nra_triplet_seed-0_1_data\.root-_a_b_c-[0-9a-f]{8}", name)
    assert handed_on == [f"hydra.sweep.dir='{name}'"]
    assert named("method=nra,triplet", "data.root=/a/b c", "seed=0,1")[0] == name
    assert named("method=nra,triplet", "data.root=/a/b/c", "seed=0,1")[0] != name
    assert len(named(*(f"key{i}={i}" for i in range(100)))[0]) < 120
    assert named()[0].startswith("multirun/defaults-")


def test_a_name_that_the_user_gave_stays():
    assert named("seed=0,1", folder="mine") == ("mine", [])


def test_at_its_end_a_sweep_names_its_folder_and_the_next_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SweepNamedByCommand, "_folder", "")
    folder = tmp_path / "my sweep"
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "sweeper": {"_target_": "x.BasicSweeper"}}})
    callback = SweepNamedByCommand()
    callback.on_multirun_start(config)
    for said in ("", "1 run is", "2 runs are"):
        callback.on_multirun_end(config)
        command = f" in {folder}: python -m dml.report '{folder}'\n" if said else ""  # quoted for its space
        assert capsys.readouterr().out == said + command
        job = folder / str(len(said))
        job.mkdir(parents=True)
        (job / "metrics.json").touch()
    SweepNamedByCommand._folder, config.hydra.sweeper._target_ = "", sweep._SEARCH
    callback.on_multirun_start(config)
    callback.on_multirun_end(config)
    assert capsys.readouterr().out == ""  # the search says it


@pytest.mark.parametrize("how", ["hydra/launcher=workers", "hydra.launcher.n_jobs=4", "hydra.sweeper.n_trials=40"])
def test_how_a_sweep_is_run_does_not_name_it(how):
    assert named("seed=0,1", hydra=(how,))[0] == named("seed=0,1")[0]


@pytest.mark.parametrize("what", ["hydra/sweeper=alpha_lr", "hydra.sweeper.sampler.seed=1"])
def test_what_a_search_looks_for_does(what):
    name = named("seed=0", hydra=(what, "hydra/launcher=workers"))[0]
    assert name not in (named("seed=0")[0], named("seed=0", hydra=("hydra/sweeper=alpha_lr", what))[0])
    assert "sweeper" in name and "launcher" not in name


@pytest.mark.parametrize(
    ("place", "devices", "mine"), [(0, 1, "a"), (1, 1, "b"), (3, 1, "a"), (0, 2, "ab"), (1, 2, "ca"), (0, 3, "abc")]
)
def test_workers_take_gpus_in_turn(place, devices, mine):
    assert share(place, devices, ["a", "b", "c"]) == list(mine)


def test_a_worker_keeps_its_gpu_and_frees_it_at_its_end(tmp_path, monkeypatch):
    job = composed("train", f"hydra.sweep.dir={tmp_path}", hydra=True)
    with open_dict(job):
        job.hydra.launcher = {"_target_": "hydra_plugins.JoblibLauncher"}
    monkeypatch.setattr(sweep, "_gpus", lambda job: ["3", "5"])  # there is none here
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")

    def gpu_of_a_new_worker():
        monkeypatch.setattr(WorkerOfJoblib, "_place", None)
        WorkerOfJoblib().on_job_start(job)
        WorkerOfJoblib().on_job_start(job)  # its second job
        return os.environ["CUDA_VISIBLE_DEVICES"], WorkerOfJoblib._place

    (first, place), (second, _other) = gpu_of_a_new_worker(), gpu_of_a_new_worker()
    assert (first, second) == ("3", "5")
    place.close()  # as the system does
    assert gpu_of_a_new_worker()[0] == "3"
    with (tmp_path / ".worker1").open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(("threads", "cores", "workers"), [("1", 6, 6), ("2", 6, 3), ("8", 6, 1), ("null", 6, 1)])
def test_workers_without_gpus_share_the_cores(threads, cores, workers, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    job = composed("train", "trainer.accelerator=cpu", f"threads={threads}")
    assert sweep._at_once(job) == workers


@pytest.mark.parametrize(("gpus", "devices", "workers"), [(8, "1", 8), (8, "2", 4), (8, "auto", 1), (1, "2", 1)])
def test_workers_share_the_gpus(gpus, devices, workers, monkeypatch):
    monkeypatch.setattr(sweep, "_gpus", lambda job: [str(gpu) for gpu in range(gpus)])
    assert sweep._at_once(composed("train", f"trainer.devices={devices}")) == workers


@pytest.mark.parametrize(
    ("plugin", "override", "extra"),
    [
        ("hydra_joblib_launcher", "hydra/launcher=workers", "sweep"),
        ("hydra_ray_launcher", "hydra/launcher=ray_workers", "ray"),
    ],
)
def test_what_is_not_installed_is_named(plugin, override, extra):
    if not needs(plugin).args[0]:
        pytest.skip(f"{plugin} is installed")
    code, out, err = end(start("train.py", "-m", "seed=0,1", override))
    assert code == 1 and out == ""
    assert err == f"{override} is not installed: pip install -c constraints.txt -e '.[{extra}]'\n"


@needs("hydra_joblib_launcher")
def test_workers_run_jobs_at_once_and_name_what_failed(tmp_path):
    finished = train(tmp_path / "0", "loss.alpha=4")
    alone = train(tmp_path / "alone", "loss.alpha=2")
    command = (*TRAIN, "loss.alpha=4,-1,2", "hydra/launcher=workers", "hydra.launcher.n_jobs=2", "loader.workers=1")
    code, out, err = end(start("train.py", "-m", *command, f"hydra.sweep.dir={tmp_path}"))
    assert code == 1 and "Traceback" not in err
    assert re.findall("Job . failed: [^:]*", err) == ["Job 1 failed: loss.alpha=-1 is not possible"]
    assert out.count("not run again") == 1 and metrics_of(tmp_path / "0") == finished.metrics
    assert metrics_of(tmp_path / "2") == alone.metrics
    assert not (tmp_path / "1" / "metrics.json").exists()
    assert out.endswith(f"3 runs are in {tmp_path}: python -m dml.report {tmp_path}\n")


def assert_goes_on(folder, launcher):
    """Two jobs of which one is finished: that one stays, the other is run."""
    finished = train(folder / "0", "seed=0")
    sweep = ("seed=0,1", f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}", "loader.workers=1")
    code, _, err = end(start("train.py", "-m", *TRAIN, *sweep))
    assert code == 0, err
    assert metrics_of(folder / "0") == finished.metrics != metrics_of(folder / "1")


@needs("hydra_submitit_launcher")
def test_submitit_runs_jobs_as_processes(tmp_path):
    assert_goes_on(tmp_path, "slurm_local")
    said = [file.read_text() for file in (tmp_path / ".submitit").rglob("*_log.out")]
    assert len(said) == 2 and sum("not run again" in text for text in said) == 1


@needs("hydra_submitit_launcher")
def test_what_slurm_is_asked_for(tmp_path):
    from submitit.auto.auto import AutoExecutor
    from submitit.slurm.slurm import _make_sbatch_string

    launcher = composed("train", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", hydra=True).hydra.launcher
    settings = {key: launcher[key] for key in launcher if key not in ("_target_", "submitit_folder", "max_num_timeout")}
    settings = OmegaConf.to_container(OmegaConf.create({**settings, "name": "train"}))
    shared = {"name", "timeout_min", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb"}
    executor = AutoExecutor(tmp_path, cluster="local")  # it knows which settings Slurm's executor takes
    executor.update_parameters(**{key if key in shared else f"slurm_{key}": settings[key] for key in settings})
    with pytest.raises(NameError):
        executor.update_parameters(slurm_partitoin="gpu")
    renamed = {"name": "job_name", "timeout_min": "time", "tasks_per_node": "ntasks_per_node", "mem_gb": "mem"}
    script = _make_sbatch_string("run", tmp_path, **{renamed.get(key, key): settings[key] for key in settings})
    for line in ("partition=gpu", "gpus-per-node=1", "ntasks-per-node=1", "cpus-per-task=8", "time=720"):
        assert f"#SBATCH --{line}\n" in script
    assert "@120" in script


@needs("hydra_ray_launcher", "ray")
def test_ray_runs_jobs(tmp_path):
    assert_goes_on(tmp_path, "ray_workers")
