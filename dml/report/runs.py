"""Reading finished runs: their metrics.json, and of others only that they are there."""

import difflib
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dml.printable import printable

NRA = "dml.losses.nra.NRALoss"
# What may differ between runs that are averaged: the seed, what follows from it, the version of the code (said
# beneath the table: most changes of the code change no result), and what older rows do not have.
_FREE = frozenset({"seed", "evaluated_step", "code", "class_disjoint", "leak", "notes"})
# What follows from the fold, when that differs.
_FOLD = frozenset({"split.fold", "train_images", "train_classes", "loss.num_classes"})
# What rows of before lack: it is compared where both have it.
_LATER = frozenset({"split._target_", "transform.interpolation", "images.mean", "images.std"})


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its metrics, and the row of everything that decides them."""

    folder: Path
    metrics: dict[str, float]
    row: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The row by dotted key, as loss.alpha."""
        return _flat(self.row)

    @property
    def alpha_key(self) -> str | None:
        """The key of NRA's alpha: loss.alpha, loss.loss.alpha of one that is wrapped; None: there is no NRA."""
        return _alpha_key("loss", self.row.get("loss"))

    def label(self, by: Iterable[str] = (), swept: Container[str | None] = ()) -> str:
        """The method's name with the values of the row's keys `by`, where it has them, and of its alpha if `swept`."""
        settings = self.settings
        keys = [*by, *([key] if (key := self.alpha_key) in swept and key else [])]
        shown = {key: settings[key] for key in keys if key in settings}
        # 4 and 4.0 are one value: a config file has one, a command line the other.
        text = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in shown.items()}
        return printable(self.row["method"] + "".join(f", {key}={value}" for key, value in text.items()))


def _alpha_key(key: str, loss: Any) -> str | None:
    if not isinstance(loss, dict):
        return None
    if loss.get("_target_") == NRA:
        return f"{key}.alpha" if "alpha" in loss else None
    found = (_alpha_key(f"{key}.{name}", inner) for name, inner in loss.items())
    return next((inner for inner in found if inner), None)


def swept_alphas(runs: Sequence[Run]) -> set[str]:
    """The keys of NRA's alpha by which runs of one method, data set and dimension differ."""
    values: dict[Any, set[float]] = {}
    for run in runs:
        if (key := run.alpha_key) is not None:
            same = key, run.row["method"], run.row["data"], run.row["dimension"]
            values.setdefault(same, set()).add(float(run.settings[key]))
    return {key for (key, *_), alphas in values.items() if len(alphas) > 1}


class Group(NamedTuple):
    """What is averaged over seeds and folds: one method on one data set with one embedding size."""

    label: str
    data: str
    dimension: int


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All finished runs in or below the folders, folder by folder in the order of paths; jobs of a sweep by number.

    What a search pruned is not finished.

    Raises:
        ValueError: a folder holds none, or a metrics.json cannot be read.
    """
    runs = []
    files: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        below = sorted(folder.resolve().rglob("metrics.json"), key=_by_number)
        if not below:
            raise ValueError(f"no finished run (metrics.json) in {folder}")
        files |= dict.fromkeys(below)
    for file in files:
        try:
            content = json.loads(file.read_text())
            if content["row"].get("pruned"):
                continue
            run = Run(file.parent, content["metrics"], content["row"])
            _ = [run.row[key] for key in ("method", "data", "dimension", "seed")]
            _ = [float(value) for value in run.metrics.values()]
            runs.append(run)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not the metrics.json of a run: {error!r}") from error
    if not runs:
        raise ValueError(f"no finished run in {', '.join(map(str, folders))}: a search pruned all that are there")
    return runs


def pruned(folders: Sequence[Path]) -> list[Path]:
    """Runs in or below the folders that a search gave up."""
    files = {file for folder in folders for file in folder.resolve().rglob("metrics.json")}
    return sorted(file.parent for file in files if json.loads(file.read_text())["row"].get("pruned"))


def unfinished(folders: Sequence[Path]) -> list[Path]:
    """Runs in or below the folders that have begun (config.yaml) and not ended."""
    begun = {file.parent for folder in folders for file in folder.resolve().rglob("config.yaml")}
    ended = ("metrics.json", "evaluation.json")
    return sorted(run for run in begun if run.name != ".hydra" and not any((run / name).is_file() for name in ended))


def _by_number(file: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in file.parts]


def group_runs(
    runs: Sequence[Run], by: Sequence[str] = (), swept: Container[str | None] = ()
) -> dict[Group, list[Run]]:
    """Runs of one method, data set, dimension and value of each key in `by` (such as loss.mining), as they come; of
    each value of NRA's alpha too, if its key is `swept`.

    A run that repeats the seed and fold of another in its group is left out: it is no further sample. Where training
    may stop early, the number of steps may differ.

    Raises:
        ValueError: two runs of a group differ in more than seed and fold, so a mean over them would mean nothing, or
            no run has a key of `by`; names the key.
    """
    for key in by:
        if not any(key in run.settings for run in runs):
            known = sorted({name for run in runs for name in run.settings})
            near = (
                difflib.get_close_matches(key, known) or [name for name in known if name.startswith(f"{key}.")] or known
            )
            raise ValueError(f"--by {key} is no key of these runs; there is {', '.join(near)}")
    groups: dict[Group, list[Run]] = {}
    for run in runs:
        members = groups.setdefault(Group(run.label(by, swept), printable(run.row["data"]), run.row["dimension"]), [])
        if members:
            _refuse_other_settings(members[0], run)
        same = next((other for other in members if sample_of(other) == sample_of(run)), None)
        if same is None:
            members.append(run)
        elif same.row.get("code") != run.row.get("code"):
            raise ValueError(
                f"{same.folder} and {run.folder} are one run by two versions of the code: leave one of them out"
            )
    return groups


def _refuse_other_settings(first: Run, other: Run) -> None:
    a, b = first.settings, other.settings
    free = _FREE | (_FOLD if a.get("split.fold") != b.get("split.fold") else frozenset())
    free |= {"steps"} if a.get("protocol.patience") is not None else frozenset()
    # The sizes of the parts follow from data and split.
    keys = {key for key in a.keys() | b.keys() if not key.startswith("parts.")} - free
    free |= {key for key in _LATER if key not in a or key not in b}
    differing = sorted(key for key in keys if a.get(key) != b.get(key))
    if differing:
        raise ValueError(
            f"runs of {first.row['method']} differ in {', '.join(differing)} and cannot be averaged: "
            f"{first.folder} and {other.folder}; --by KEY gives each value a line"
        )


def sample_of(run: Run) -> tuple[Any, Any]:
    """What tells apart the runs that are averaged: seed and fold."""
    return run.row["seed"], run.settings.get("split.fold")


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
