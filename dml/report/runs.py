"""Reading finished runs: their metrics.json, never anything else."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What may differ between runs that are averaged: the seed, and what follows from it.
_FREE = ("seed", "evaluated_step")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its metrics, and the row of everything that decides them."""

    folder: Path
    metrics: dict[str, float]
    row: dict[str, Any]

    def label(self, by: Sequence[str] = ()) -> str:
        """The method's name with the values of the row's keys `by`; says so if test classes were watched."""
        flat = _flat(self.row)
        missing = [key for key in by if key not in flat]
        if missing:
            raise ValueError(f"--by {missing[0]} is no key of {self.folder}: {', '.join(flat)} are")
        values = "".join(f", {key}={flat[key]}" for key in by)
        return self.row["method"] + values + (" (leaked)" if self.row.get("leaked") else "")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All finished runs in or below the folders, in the order of their paths; jobs of a sweep by number.

    Raises:
        ValueError: there is none, or a metrics.json cannot be read.
    """
    runs = []
    files = {file for folder in folders for file in folder.rglob("metrics.json")}
    for file in sorted(files, key=lambda f: [(int(part) if part.isdigit() else -1, part) for part in f.parts]):
        try:
            content = json.loads(file.read_text())
            runs.append(Run(file.parent, content["metrics"], content["row"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not the metrics.json of a run: {error!r}") from error
    if not runs:
        raise ValueError(f"no finished run (metrics.json) in {', '.join(map(str, folders))}")
    return runs


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Runs of one method, and of one value of each key in `by` (such as loss.alpha), in the order they come.

    Raises:
        ValueError: two runs of a group differ in more than the seed, so a mean over them would mean nothing; names
            the key.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label(by), []).append(run)
    for label, members in groups.items():
        first = _flat(members[0].row)
        for other in members[1:]:
            row = _flat(other.row)
            differing = sorted(key for key in first.keys() | row.keys() if first.get(key) != row.get(key))
            if differing:
                raise ValueError(
                    f"runs of {label} differ in {', '.join(differing)} and cannot be averaged: "
                    f"{members[0].folder} and {other.folder}; --by KEY gives each value a line"
                )
    return groups


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if prefix or key not in _FREE:
            flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
