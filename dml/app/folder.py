"""The folder of a run: held by one process, continued by the same command, never mixed with another run."""

import json
import pydoc
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dml.app.checkpoint import read_checkpoint
from dml.app.errors import OtherRunError
from dml.app.keys import takes_steps
from dml.app.schema import parameters_of
from dml.app.search import pruned_at, validated_in
from dml.app.settings import LATER, Optimizing, Splitting
from dml.data.trained_on import TrainedOn
from dml.locks import lock

# Keys that decide how a run is carried out, not what comes out of it: they may change where a run goes on.
_FREE = frozenset(
    {"resume", "trainer", "callbacks", "logger", "loader", "progress_bar", "threads", "checkpoint_minutes"}
    | {f"engine.{key}" for key in ("compile", "micro_batch", "reuse_memory")}
    | {"data.cache", "data.cache_dir", "data.max_bad", "data.download"}
)
# Of these, what may still change a number: who asks for the same run again is asked to say that it is another.
_SAME_RUN = _FREE - {"trainer", "engine.compile", "engine.micro_batch", "callbacks"}
_BESIDE = {"data": Splitting, "optimizer": Optimizing}
_PATIENCE = 10  # seconds; the data workers of a process that was killed hold its lock a little longer


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the folder for this run; the system lets go of it however the process ends.

    Raises:
        OtherRunError: another process runs in it.
    """
    if getattr(rank_zero_only, "rank", 0):  # the first process of the run holds it for all
        yield
        return
    with (folder / ".lock").open("w") as file:
        deadline = time.monotonic() + _PATIENCE
        if not (taken := take(file)):
            print(f"Waiting for another process in {folder}", file=sys.stderr)
        while not taken:
            if time.monotonic() > deadline:
                raise OtherRunError(
                    f"another process is running in {folder}: wait for it, or give another hydra.run.dir or "
                    "hydra.sweep.dir"
                )
            time.sleep(0.1)
            taken = take(file)
        yield


def take(file: IO[str]) -> bool:
    """Lock the file, for as long as it is open; False if another process has."""
    try:
        lock(file, wait=False)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        warnings.warn(f"no lock on {file.name}: do not run two processes in this folder ({error})", stacklevel=2)
    return True


def has_begun(cfg: DictConfig, folder: Path) -> bool:
    """Whether weights come from a run before this, so that a file they once came from need not be there."""
    files = ("metrics.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
    return cfg.get("resume") is not None or any((folder / file).is_file() for file in files)


def finished_metrics(
    cfg: DictConfig, folder: Path, code: str, trained_on: Callable[[], TrainedOn]
) -> dict[str, float] | None:
    """The metrics of the run that this folder holds; None if it holds no finished one.

    A run that a search has pruned counts as finished as long as the search prunes it.

    Args:
        cfg: of the run that is asked for.
        folder: of the run.
        code: fingerprint of the code of now.
        trained_on: reads what it would train on; asked where the data has another place than then.

    Raises:
        OtherRunError: they come from other settings, other images or another version of our code;
            names the difference.
    """
    file = folder / "metrics.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    if found["row"].get("pruned") and pruned_at(folder, validated_in(folder)) is None:
        file.unlink()
        return None
    if (folder / "config.yaml").is_file():
        before = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        moved = _same_settings(before, cfg, _SAME_RUN, f"{folder} holds a run that")
        if moved:
            same_images(_newest(folder), trained_on(), moved)
    if found["row"].get("code") != code:
        raise OtherRunError(
            f"{folder} holds a run that another version of the code finished, and it is left as it is: "
            "to run it again delete the folder, or give another hydra.run.dir or hydra.sweep.dir"
        )
    return found["metrics"]


def what_became_of(folder: Path) -> str:
    """Of a run that is not run again: Finished, or Pruned by a search."""
    return "Pruned" if json.loads((folder / "metrics.json").read_text())["row"].get("pruned") else "Finished"


def same_images(checkpoint: Path | None, now: TrainedOn, moved: Sequence[str] = ()) -> None:
    """Refuse to go on with other images than those that a run began with, wherever they are.

    Args:
        checkpoint: of the run.
        now: what it would train on.
        moved: keys that name another place than then, with their values. Without them a checkpoint that does not say
            what it was trained on is taken, as the data module looks at the labels.

    Raises:
        OtherRunError: they are others, or it cannot be told.
    """
    then = None if checkpoint is None else TrainedOn.read(read_checkpoint(checkpoint, "resume").get("trained_on"))
    if then is None:
        if moved:
            raise OtherRunError(
                f"the run was trained with other settings of {', '.join(moved)}, and no checkpoint of it says which "
                "images these were. Give the same command as then"
            )
        return
    changed = [
        f"the {part} images"
        for part, same in (
            ("training and validation", (then.order, then.classes) == (now.order, now.classes)),
            ("test", then.test == now.test),
        )
        if not same
    ]
    if changed:
        where = f" ({', '.join(moved)})" if moved else ""
        raise OtherRunError(
            f"data{where}: {' and '.join(changed)} are not those that this run began with (images or classes were "
            "added, taken away, renamed or found broken), so it cannot go on: begin a new run"
        )


def resume_point(cfg: DictConfig, folder: Path, code: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from: that of an unfinished run in this folder, or the one that cfg.resume names.

    The folder comes first, as the same command, given again, goes on from where it was.

    Returns:
        The checkpoint, and which keys say that its images have another place now: `same_images` has to hold.

    Raises:
        ValueError: there is none where cfg.resume says, or it cannot be read.
        OtherRunError: its run had other settings.
    """
    path = _newest(folder)
    if path is None and cfg.resume is None:
        return None, []
    if path is None or (cfg.resume is not None and Path(cfg.resume).resolve() == folder.resolve()):
        path = Path(cfg.resume)
        path = (_newest(path) or path / "checkpoints" / "last.ckpt") if path.is_dir() else path
        found, best = read_checkpoint(path, "resume"), path.with_name("best.ckpt")
        if best.is_file() and read_checkpoint(best, "resume")["global_step"] > found["global_step"]:
            raise ValueError(f"resume={path} is older than {best}, the best of its run: give resume={path.parents[1]}")
        return path, _same_settings(found["dml_config"], cfg, _FREE, f"resume={cfg.resume}")
    before = read_checkpoint(path, "resume")["dml_config"]
    moved = _same_settings(before, cfg, _SAME_RUN, f"{folder} holds a run that")
    if before.get("code") != code:
        raise OtherRunError(
            f"{folder} holds a run that another version of the code began, and it is left as it is: to begin again "
            f"delete the folder, to go on with this code give resume={folder} and another hydra.run.dir"
        )
    return path, moved


def _newest(folder: Path) -> Path | None:
    """The checkpoint of a run that was written last: a kill may come between best.ckpt and last.ckpt."""
    files = [file for name in ("last", "best") if (file := folder / "checkpoints" / f"{name}.ckpt").is_file()]
    # Of two of one step last.ckpt, which comes first here.
    return max(files, key=lambda file: read_checkpoint(file, "resume")["global_step"], default=None)


def same_schedule(resumed: Path, cfg: DictConfig) -> None:
    """Refuse to go on with a schedule of other steps, which are known once the data is loaded.

    Raises:
        OtherRunError: names the key.
    """
    now = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(now, dict)
    before = {**now, "scheduler": read_checkpoint(resumed, "resume")["dml_config"]["scheduler"]}
    _same_settings(before, cfg, frozenset(), f"resume={resumed}")


def _same_settings(before: Any, cfg: DictConfig, free: frozenset[str], said: str) -> list[str]:
    """Refuse other settings than `before`; returns what differs in where the data is alone."""
    free |= {f"scheduler.{key}" for key in takes_steps(cfg)}  # `same_schedule`
    now = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(now, dict)
    then = {key: _with_defaults(str(key), before.get(key), node) for key, node in now.items()}
    found = [one for key in now for one in _differences(str(key), then[key], now[key], free)]
    changed, moved = ([line for place, line in found if place is kind] for kind in (False, True))
    if changed:
        other = "leave out resume" if said.startswith("resume=") else "give another hydra.run.dir or hydra.sweep.dir"
        raise OtherRunError(
            f"{said} was trained with other settings of {', '.join(changed)}. Give the same command as then, or {other}"
        )
    return moved


def _with_defaults(group: str, before: Any, now: Any) -> Any:
    """A group of a run, with the defaults of the keys that its version of the code did not have."""
    if not (isinstance(before, dict) and isinstance(now, dict) and before.get("_target_") == now.get("_target_")):
        return before
    call = pydoc.locate(str(now.get("_target_")))
    parameters = parameters_of(call)[0] if callable(call) else {}
    defaults = {
        key: parameter.default for key, parameter in parameters.items() if parameter.default is not parameter.empty
    }
    defaults |= vars(_BESIDE[group]()) if group in _BESIDE else {}
    added = {key: defaults[key] for key in now.keys() - before.keys() if key in defaults}
    return before | {key: list(value) if isinstance(value, tuple) else value for key, value in added.items()}


def _differences(key: str, before: Any, now: Any, free: frozenset[str]) -> list[tuple[bool, str]]:
    """(Whether it says where the data is, the key with both values) of each difference."""
    if key in free or (now is None and _is_filled_in(key)):
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [one for k in keys for one in _differences(f"{key}.{k}", before.get(k), now.get(k), free)]
    place = key.startswith("data.") and key != "data._target_" and _is_text(before) and _is_text(now)
    return [] if before == now else [(place, f"{key} (then {before}, now {now})")]


def _is_filled_in(key: str) -> bool:
    """Whether it is a key that a checkpoint has and a command leaves open: of the loss, or of one that it wraps."""
    return key.startswith("loss.") and key.rpartition(".")[2] in LATER


def _is_text(value: Any) -> bool:
    """Text, texts, or nothing: where something is, or which of several ways; the images decide whether it matters."""
    return value is None or isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value)))
