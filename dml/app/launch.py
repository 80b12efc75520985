"""Runs of several processes: who starts them, and that all of them use one folder."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dml.app.paths import quoted
from dml.engine.stop import StopSignals

_TRAIN = Path(__file__).resolve().parents[2] / "train.py"


def one_folder(arguments: list[str]) -> list[str]:
    """The override by which all processes of torchrun or srun use one output folder; [] where there is none to give.

    Each of them is a command of its own, whose Hydra would name a folder after its own time of day.
    """
    if any(argument.startswith("hydra.run.dir=") for argument in arguments):
        return []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from dml.engine.gather import first_said  # here, as --help needs no torch

        return [f"hydra.run.dir=outputs/{first_said(datetime.now().strftime('%Y-%m-%d/%H-%M-%S-%f'))}"]
    if _tasks_of_slurm() > 1:  # the number stays when the job is queued again, and the run goes on
        return [f"hydra.run.dir=outputs/slurm/{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_STEP_ID', 0)}"]
    return []


def run_folder() -> Path:
    """Hydra's output folder; where `compose` made the config, as in a notebook, one named after the time of day."""
    if HydraConfig.initialized():
        return Path(HydraConfig.get().runtime.output_dir)
    folder = Path("outputs") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    folder.mkdir(parents=True)
    return folder


def told_on_command_line() -> list[str]:
    """The overrides of the command; where `compose` was given them, nobody knows which they were."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def group_of_sweep() -> str | None:
    """The name of the sweep's folder; None: this is no job of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def _tasks_of_slurm() -> int:
    return int(os.environ.get("SLURM_NTASKS", 1))


def is_command_of_its_own(cfg: DictConfig) -> bool:
    """Whether this job of a sweep is to be run as a command of its own, by `run_as_command`.

    Lightning starts the other processes of a run by the command line of the first, which in a sweep is that of the
    whole sweep (or of a launcher's worker); and a process group outlives the job that made it.
    """
    started = "LOCAL_RANK" in os.environ or _tasks_of_slurm() > 1  # all its processes are there already
    several = cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1
    return several and not started and group_of_sweep() is not None


def run_as_command(folder: Path, stop: StopSignals) -> dict[str, float]:
    """Run this job of a sweep as the plain command that it stands for, in the job's folder.

    Returns:
        The metrics that it wrote.

    Raises:
        ValueError: it failed; it has said why.
        KeyboardInterrupt: a signal ended it.
    """
    hydra = HydraConfig.get()
    added = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    command = [sys.executable, str(_TRAIN), f"--config-name={hydra.job.config_name}"]
    command += [f"--config-dir={path}" for path in added]
    command += [*hydra.overrides.task, f"hydra.run.dir={quoted(str(folder))}", "hydra.output_subdir=null"]
    # One task of Slurm: Lightning would take it for the only process.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment.setdefault("WANDB_RUN_GROUP", Path(hydra.sweep.dir).name)  # that command knows of no sweep
    process = subprocess.Popen(command, env=environment)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        by_user = stop.received in (None, signal.SIGINT)
        if by_user:
            with suppress(subprocess.TimeoutExpired):  # a terminal has told its processes; another sender has not
                process.wait(timeout=3)
        process.send_signal(signal.SIGINT if by_user else signal.SIGTERM)
        process.wait()
        raise
    if status:
        raise ValueError(f"its processes ended with status {status}; what they said stands above")
    return json.loads((folder / "metrics.json").read_text())["metrics"]
