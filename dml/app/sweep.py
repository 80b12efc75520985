"""Callbacks of a sweep. Imports Hydra only: a mistake in a sweep is found before torch is loaded."""

import hashlib
import itertools
import multiprocessing
import os
import re
import shlex
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from dml.engine.stop import STATUS
from dml.words import counted

_SEARCH = "hydra_plugins.dml_search.Search"
# Of the overrides of Hydra, those that say what is swept; the others say how, and the sweep stays the same.
_SWEPT = re.compile(r"hydra/sweeper|hydra\.sweeper\.(?!n_trials=)")


class SweepNamedByCommand(Callback):
    """Name the folder of a sweep after its command, so that the same command finds it again, and say it at the end.

    An hydra.sweep.dir that the user gives stays.
    """

    _folder = ""  # of the sweep of this command

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fill in hydra.sweep.dir before the sweeper reads it."""
        if not config.hydra.sweep.dir:
            self._name(config)
        if config.hydra.sweeper._target_.endswith(".BasicSweeper"):  # a search says what it found, and where
            SweepNamedByCommand._folder = config.hydra.sweep.dir

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say where the runs are. If a job failed Hydra raises its error instead of coming here."""
        self.say_where()

    @classmethod
    def say_where(cls) -> None:
        """Name the folder of the sweep, if there is one with finished runs, and what makes its table."""
        runs = sum(1 for _ in Path(cls._folder).rglob("metrics.json")) if cls._folder else 0
        if runs:
            are = f"{counted(runs, 'run')} {'is' if runs == 1 else 'are'}"
            print(f"{are} in {cls._folder}: python -m dml.report {shlex.quote(cls._folder)}")

    @staticmethod
    def _name(config: DictConfig) -> None:
        overrides = [*filter(_SWEPT.match, config.hydra.overrides.hydra), *config.hydra.overrides.task]
        command = " ".join(overrides)
        # What is swept comes first, as the name is cut. No character that an override such as ckpt_path=FILE would need
        # quotes for.
        swept_first = " ".join(sorted(overrides, key=lambda override: "," not in override))
        readable = re.sub(r"[^\w.-]+", "_", swept_first.replace("=", "-"))[:80].strip("_") or "defaults"
        name = f"multirun/{readable}-{hashlib.sha256(command.encode(errors='surrogatepass')).hexdigest()[:8]}"
        with read_write(config.hydra):
            config.hydra.sweep.dir = name
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{name}'")  # each job composes its config anew


class SweepChecked(Callback):
    """Refuse a sweep that cannot work, give joblib as many workers as there is room for, end as asked to be.

    Exits with one line: what a callback raises Hydra only warns of.
    """

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Look at launcher and sweeper before they are made."""
        for number in (signal.SIGTERM, signal.SIGUSR1):  # a job in this process takes them itself
            signal.signal(number, lambda *_: sys.exit(STATUS))
        for part in ("launcher", "sweeper"):
            target = config.hydra[part]._target_
            try:
                import_module("optuna" if target == _SEARCH else target.rpartition(".")[0])
            except ImportError:
                extra = "ray" if target.endswith(".RayLauncher") else "sweep"
                choice = config.hydra.runtime.choices[f"hydra/{part}"]
                sys.exit(f"hydra/{part}={choice} is not installed: pip install -c constraints.txt -e '.[{extra}]'")
        searches = not config.hydra.sweeper._target_.endswith(".BasicSweeper")
        counts = config.hydra.launcher.get("n_jobs", 1) is None
        if not searches and not counts:
            return
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        job = compose(config_name, fixed)
        if searches and not job.protocol.validate:
            sys.exit(
                f"protocol={job.protocol.name} has no validation metric for hydra/sweeper="
                f"{config.hydra.runtime.choices['hydra/sweeper']} to search by, and the test classes choose nothing: "
                "use protocol=validated, or sweep over a list"
            )
        if counts:
            with read_write(config.hydra):
                config.hydra.launcher.n_jobs = _at_once(job)


def _at_once(job: DictConfig) -> int:
    gpus = _gpus(job)
    if gpus:
        return max(1, len(gpus) // _devices(job, gpus))
    return max(1, (os.cpu_count() or 1) // job.threads) if job.threads else 1


def _gpus(job: DictConfig) -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows the GPUs that this process may use."""
    import torch

    if job.trainer.accelerator == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(gpu) for gpu in range(count)]


def _devices(job: DictConfig, gpus: list[str]) -> int:
    return job.trainer.devices if isinstance(job.trainer.devices, int) and job.trainer.devices > 0 else len(gpus)


class WorkerOfJoblib(Callback):
    """Let a worker of joblib have loader processes, and GPUs of its own, which it keeps for all its jobs.

    The system frees a worker's place however the worker ends.
    """

    _place: IO[str] | None = None  # of this process

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take the first free place, before anything touches a GPU."""
        if not config.hydra.launcher._target_.endswith(".JoblibLauncher"):
            return
        if multiprocessing.get_start_method(allow_none=True) == "loky":  # a loader cannot start processes joblib's way
            multiprocessing.set_start_method(None, force=True)
        if WorkerOfJoblib._place is not None or not (gpus := _gpus(config)):
            return
        from dml.app.folder import take

        for place in itertools.count():
            lock = (Path(config.hydra.sweep.dir) / f".worker{place}").open("w")
            if take(lock):
                break
            lock.close()
        WorkerOfJoblib._place = lock
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share(place, _devices(config, gpus), gpus))


def share(place: int, devices: int, gpus: list[str]) -> list[str]:
    """The GPUs of a worker: as many as a job has devices, in turn."""
    return [gpus[(place * devices + i) % len(gpus)] for i in range(devices)]
