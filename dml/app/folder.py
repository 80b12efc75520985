"""The folder of a run: held by one process, continued by the same command, never mixed with another run."""

import fcntl
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dml.app.checkpoint import read_checkpoint

# Keys that decide how a run is carried out, not what comes out of it: they may change where a run goes on.
_FREE = frozenset(
    {"resume", "trainer", "engine", "logger", "loader", "progress_bar", "threads", "checkpoint_minutes"}
    | {"data.cache", "data.cache_dir", "data.max_bad"}
)
# Of these, what may still change a number: who asks for the same run again is asked to say that it is another.
_SAME_RUN = _FREE - {"trainer", "engine"}
_PATIENCE = 10  # seconds; the data workers of a process that was killed hold its lock a little longer


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the folder for this run; the system lets go of it however the process ends.

    Raises:
        ValueError: another process runs in it.
    """
    if getattr(rank_zero_only, "rank", 0):  # the first process of the run holds it for all
        yield
        return
    with (folder / ".lock").open("w") as lock:
        deadline = time.monotonic() + _PATIENCE
        if not (taken := take(lock)):
            print(f"Waiting for another process in {folder}", file=sys.stderr)
        while not taken:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"another process is running in {folder}: wait for it, or give another hydra.run.dir or "
                    "hydra.sweep.dir"
                )
            time.sleep(0.1)
            taken = take(lock)
        yield


def take(lock: IO[str]) -> bool:
    """Lock the file, for as long as it is open; False if another process has."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        warnings.warn(f"no lock on {lock.name}: do not run two processes in this folder ({error})", stacklevel=2)
    return True


def finished_metrics(cfg: DictConfig, folder: Path, code: str) -> dict[str, float] | None:
    """The metrics of the run that this folder holds; None if it holds no finished one.

    Raises:
        ValueError: they come from other settings or another version of our code; names the difference.
    """
    file = folder / "metrics.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    if (folder / "config.yaml").is_file():
        before = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        _same_settings(before, cfg, _SAME_RUN, f"{folder} holds a run that")
    if found["row"].get("code") != code:
        raise ValueError(
            f"{folder} holds a run that another version of the code finished, and it is left as it is: "
            "to run it again delete the folder, or give another hydra.run.dir or hydra.sweep.dir"
        )
    return found["metrics"]


def resume_point(cfg: DictConfig, folder: Path, code: str) -> Path | None:
    """The checkpoint to go on from: that of an unfinished run in this folder, or the one that cfg.resume names.

    The folder comes first, as the same command, given again, goes on from where it was.

    Raises:
        ValueError: there is none where cfg.resume says, it cannot be read, or its run had other settings.
    """
    path = _newest(folder)
    if path is None and cfg.resume is None:
        return None
    if path is None or (cfg.resume is not None and Path(cfg.resume).resolve() == folder.resolve()):
        path = Path(cfg.resume)
        path = (_newest(path) or path / "checkpoints" / "last.ckpt") if path.is_dir() else path
        found, best = read_checkpoint(path, "resume"), path.with_name("best.ckpt")
        if best.is_file() and read_checkpoint(best, "resume")["global_step"] > found["global_step"]:
            raise ValueError(f"resume={path} is older than {best}, the best of its run: give resume={path.parents[1]}")
        _same_settings(found["dml_config"], cfg, _FREE, f"resume={cfg.resume}")
        return path
    before = read_checkpoint(path, "resume")["dml_config"]
    _same_settings(before, cfg, _SAME_RUN, f"{folder} holds a run that")
    if before.get("code") != code:
        raise ValueError(
            f"{folder} holds a run that another version of the code began, and it is left as it is: to begin again "
            f"delete the folder, to go on with this code give resume={folder} and another hydra.run.dir"
        )
    return path


def _newest(folder: Path) -> Path | None:
    """The checkpoint of a run that was written last: a kill may come between best.ckpt and last.ckpt."""
    files = [file for name in ("last", "best") if (file := folder / "checkpoints" / f"{name}.ckpt").is_file()]
    # Of two of one step last.ckpt, which comes first here.
    return max(files, key=lambda file: read_checkpoint(file, "resume")["global_step"], default=None)


def _same_settings(before: Any, cfg: DictConfig, free: frozenset[str], said: str) -> None:
    now = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(now, dict)
    changed = [line for key in now for line in _differences(str(key), before.get(key), now[key], free)]
    if changed:
        other = "leave out resume" if said.startswith("resume=") else "give another hydra.run.dir or hydra.sweep.dir"
        raise ValueError(
            f"{said} was trained with other settings of {', '.join(changed)}. Give the same command as then, or {other}"
        )


def _differences(key: str, before: Any, now: Any, free: frozenset[str]) -> list[str]:
    if key in free:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [line for k in keys for line in _differences(f"{key}.{k}", before.get(k), now.get(k), free)]
    return [] if before == now else [f"{key} (then {before}, now {now})"]
