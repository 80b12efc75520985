"""Which differences between rows of a table hold: a paired bootstrap over test classes, and the spread over seeds.

What is estimated is the difference that two methods would have in the mean over further test classes and over further
trainings. So both are uncertain:

- Classes. Queries of a class are dependent: they look for each other. And a test is to say something of classes that
  nobody has seen. So classes are drawn, each with all its queries (a cluster bootstrap), the same ones for both rows
  and for all their runs: a difference is paired query by query. Interval limits are stretched by sqrt(C / (C - 1)) and
  by t over z, as percentiles of few clusters are too narrow (Hesterberg 2015, section 4).
- Seeds. Two or three runs are too few to draw from. The error of the mean of each row is taken from their spread, and
  drawn from Welch's t distribution. That spread has some of the classes' in it, so the interval is a little too wide
  rather than too narrow.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dml.report.runs import Group, Run
from dml.report.tables import Groups, as_table

_DRAWS = 10_000
_AT_ONCE = 10_000_000  # classes that are drawn at a time
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A row less the row that it is compared with, in one metric, in percentage points.

    Attributes:
        low, high: the 95 % interval. runs: of the row, and of the other one.
        seeds: whether the spread over seeds is in the interval: both rows have two runs.
    """

    group: Group
    against: Group
    metric: str
    value: float
    low: float
    high: float
    runs: tuple[int, int]
    seeds: bool

    @property
    def holds(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare(groups: Groups, against: str) -> list[Difference]:
    """Each row of a data set and dimension less the row that `against` names there.

    Args:
        groups: rows of the table and their runs.
        against: the name of a row, or the value by which rows differ: nra, `triplet, loss.mining=hard`, hard; where the
            dimension is all that differs, that.

    Raises:
        ValueError: no row or several are named so, a run has no per_query.npz, or runs were not tested on the same.
    """
    found: list[Difference] = []
    for other, rows in _references(list(groups), against).items():
        theirs = [_Stored(run) for run in groups[other]]
        for group in rows:
            ours = [_Stored(run) for run in groups[group]]
            for stored in ours + theirs[1:]:
                stored.check_same_test(theirs[0])
            names = [name for name in theirs[0].metrics if all(name in stored.metrics for stored in ours + theirs)]
            a, b = (np.array([[one.of_classes(name) for name in names] for one in side]) for side in (ours, theirs))
            limits = intervals(a, b, np.array([theirs[0].counts(name) for name in names]))
            for i, name in enumerate(names):
                value, low, high = (100 * float(v) for v in limits[i])
                runs = len(ours), len(theirs)
                found.append(Difference(group, other, name, value, low, high, runs, min(runs) > 1))
    return found


def _references(groups: Sequence[Group], against: str) -> dict[Group, list[Group]]:
    """The row that each place of the table has under this name -> the rows that stand there too."""

    def named(label: str) -> bool:
        parts = label.split(", ")
        return against in (label, *parts, *(part.partition("=")[2] for part in parts))

    chosen = [group for group in groups if group.label == against] or [g for g in groups if named(g.label)]
    by_dimension = not chosen
    if by_dimension:
        chosen = [group for group in groups if str(group.dimension) == against]

    def place(group: Group) -> tuple[str, str]:
        return group.data, group.label if by_dimension else str(group.dimension)

    if not chosen:
        names = ", ".join(dict.fromkeys(group.label for group in groups))
        raise ValueError(f"--against {against} is none of the rows: {names}")
    if len({place(group) for group in chosen}) < len(chosen):
        names = "; ".join(dict.fromkeys(group.label for group in chosen))
        raise ValueError(f"--against {against} names several rows: give one of: {names}")
    return {one: [g for g in groups if place(g) == place(one) and g != one] for one in chosen}


class _Stored:
    """What a run has in per_query.npz."""

    def __init__(self, run: Run) -> None:
        self.run, file = run, run.folder / "per_query.npz"
        if not file.is_file():
            raise ValueError(f"{file} is not there, and --against needs it: runs of this version write it")
        with np.load(file) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        self.classes, self.of_class = np.unique(self.arrays["labels"], return_inverse=True)
        rest = set(self.arrays)
        known = lambda name: name.startswith("recall@") or name == "mrr" or name in rest  # noqa: E731
        names = [name.removeprefix("test/") for name in run.metrics if name.startswith("test/")]
        self.metrics = [name for name in names if known(name)]

    def check_same_test(self, other: "_Stored") -> None:
        same = np.array_equal(self.arrays["labels"], other.arrays["labels"])
        if not same or self.run.row.get("test") != other.run.row.get("test"):
            raise ValueError(
                f"{other.run.folder} and {self.run.folder} were not tested on the same images, so their queries cannot "
                "be paired"
            )

    def values(self, metric: str) -> np.ndarray:
        """The value of each query [Q]; NaN: it does not count."""
        rank = self.arrays["first_rank"]
        if metric.startswith("recall@"):
            return ((rank >= 0) & (rank < int(metric.removeprefix("recall@")))).astype(float)
        if metric == "mrr":
            return np.where(rank >= 0, 1 / (1.0 + rank.clip(0)), np.nan)
        return self.arrays[metric].astype(float)

    def of_classes(self, metric: str) -> np.ndarray:
        """The sum of the values of each class [C]."""
        return np.bincount(self.of_class, np.nan_to_num(self.values(metric)), minlength=len(self.classes))

    def counts(self, metric: str) -> np.ndarray:
        """How many queries of each class [C] count."""
        return np.bincount(self.of_class, ~np.isnan(self.values(metric)), minlength=len(self.classes))


def intervals(
    ours: np.ndarray, theirs: np.ndarray, counts: np.ndarray, *, draws: int = _DRAWS, seed: int = 0
) -> np.ndarray:
    """Differences of means and the limits of their 95 % intervals [M, 3], of M metrics.

    Args:
        ours: [runs, M, C] sums over the queries of each class. theirs: [other runs, M, C].
        counts: [M, C] how many queries each class has.
        draws: of the bootstrap. seed: of what is drawn: the same numbers give the same intervals.
    """
    from scipy import stats

    rng = np.random.default_rng(seed)
    apart = ours.mean(axis=0) - theirs.mean(axis=0)
    value = apart.sum(axis=1) / counts.sum(axis=1)
    drawn = _drawn(apart, counts, draws, rng) - value
    c, tail = counts.shape[1], (1 - LEVEL) / 2
    if c > 1:
        drawn *= math.sqrt(c / (c - 1)) * stats.t.isf(tail, c - 1) / stats.norm.isf(tail)
    if min(len(ours), len(theirs)) > 1:
        parts = [(side.sum(axis=2) / counts.sum(axis=1)).var(axis=0, ddof=1) / len(side) for side in (ours, theirs)]
        a, b = parts
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
        freedom = np.where(np.isfinite(freedom), freedom, 1)  # no spread at all: what is drawn is times 0
        drawn += np.sqrt(a + b) * rng.standard_t(freedom, size=drawn.shape)
    low, high = np.quantile(value + drawn, [tail, 1 - tail], axis=0)
    return np.stack([value, low, high], axis=1)


def _drawn(apart: np.ndarray, counts: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The mean difference [draws, M] of as many classes as there are, drawn with replacement."""
    c = counts.shape[1]
    found = []
    for at in range(0, draws, step := max(1, _AT_ONCE // c)):
        size = min(step, draws - at)
        chosen = rng.integers(c, size=(size, c)) + c * np.arange(size)[:, None]
        times = np.bincount(chosen.ravel(), minlength=size * c).reshape(size, c)
        found.append((times @ apart.T) / np.maximum(times @ counts.T, 1))
    return np.concatenate(found)


def as_text(differences: Sequence[Difference]) -> str:
    """A Markdown table for each row that others are compared with."""
    blocks = []
    for other in dict.fromkeys(one.against for one in differences):
        head, lines = as_cells(differences, other)
        blocks.append("\n".join([f"{title(other)}:", "", *as_table(head, lines)]))
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes(differences))])


def title(other: Group) -> str:
    """Of the table of those that are compared with a row."""
    return f"{other.data}, {other.dimension} dimensions; less {other.label}, in percentage points"


def as_cells(differences: Sequence[Difference], other: Group) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of that table."""
    mine = {(one.group, one.metric): one for one in differences if one.against == other}
    names = list(dict.fromkeys(metric for _, metric in mine))
    lines = []
    for group in dict.fromkeys(group for group, _ in mine):
        found = [mine.get((group, name)) for name in names]
        lines.append([_label(group, other), *("-" if one is None else _cell(one) for one in found)])
    return ["method", *names], lines


def _cell(one: Difference) -> str:
    return f"{one.value:+.1f} ({one.low:+.1f} to {one.high:+.1f}){' *' * one.holds}"


def _label(group: Group, other: Group) -> str:
    return group.label if group.dimension == other.dimension else f"{group.label}, {group.dimension} dimensions"


def notes(differences: Sequence[Difference]) -> list[str]:
    """What stands beneath."""
    what = "its 95 % interval (paired bootstrap over test classes, spread over seeds) leaves out 0"
    said = [f"* the difference holds: {what}"]
    if single := list(dict.fromkeys(_label(one.group, one.against) for one in differences if not one.seeds)):
        said.append(f"{', '.join(single)}: one of the two rows has a single run, so other seeds may differ by more")
    if len(differences) > 1:
        said.append(f"of {len(differences)} differences 1 in 20 would be marked by chance if there were none")
    return said


def as_csv(differences: Sequence[Difference]) -> str:
    """One line a difference, in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["data", "dimension", "method", "against", "metric", "difference", "low", "high", "holds", "runs"]
    writer.writerow([*head, "runs_against"])
    for one in differences:
        group, limits = one.group, (one.value, one.low, one.high)
        where = (group.data, group.dimension, group.label, one.against.label, one.metric)
        writer.writerow([*where, *limits, int(one.holds), *one.runs])
    return text.getvalue()
