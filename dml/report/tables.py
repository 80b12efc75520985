"""Tables of finished runs in the layout of the paper's Table I: Markdown, LaTeX, and CSV for machines."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dml.report.paper import is_official, marks, published, read
from dml.report.runs import Group, Run

Groups = Mapping[Group, Sequence[Run]]
NONE = "-"  # where there is no value
# Student's t at 0.975 is 12.71 with one degree of freedom and 4.30 with two.
_OF_TWO = (
    "An interval of two runs is wide: half of it is 12.7 times the standard error, and of three runs 4.3 times. "
    "So a third run helps most"
)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t-interval (NaN for a single value)."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(half)


@dataclass(frozen=True)
class Cell:
    """One metric of one group, in percent; the paper's value where it has one."""

    mean: float
    half: float
    paper: float | None

    @property
    def ours(self) -> str:
        """Mean ± half of the 95 % t-interval."""
        return f"{self.mean:.1f}" + ("" if math.isnan(self.half) else f" ± {self.half:.1f}")

    @property
    def theirs(self) -> str:
        """The paper's value."""
        return NONE if self.paper is None else f"{self.paper:.1f}"

    @property
    def difference(self) -> str:
        """Ours less the paper's."""
        return NONE if self.paper is None else f"{self.mean - self.paper:+.1f}"


def cell(runs: Sequence[Run], metric: str) -> Cell | None:
    """The mean of a metric over runs; None if they did not measure it."""
    if any(metric not in run.metrics for run in runs):
        return None
    mean, half = mean_and_interval([100 * run.metrics[metric] for run in runs])
    return Cell(mean, half, published(runs[0], metric))


@dataclass(frozen=True)
class Layout:
    """A table without its markup.

    Attributes:
        spans: (data set with its dimensions, number of its columns).
        columns: names of the metrics, and what is averaged last.
        lines: one list of cells each, the first naming the method.
        notes: what stands beneath.
        best: (line, column, which of those between slashes) of the highest of our values in a column, all of them if
            they are equal as printed. One value alone is no best, and of runs that watched the test classes none is.
    """

    spans: list[tuple[str, int]]
    columns: list[str]
    lines: list[list[str]]
    notes: list[str]
    best: frozenset[tuple[int, int, int]] = frozenset()


def layout(groups: Groups) -> Layout:
    """Methods as lines, the metrics of each data set as columns (of several data sets Recall@K), dimensions by slashes.

    Where the paper has a value, two more lines: the paper's, and the difference.
    """
    data = list(dict.fromkeys(group.data for group in groups))
    dimensions = {d: sorted({group.dimension for group in groups if group.data == d}) for d in data}
    every = {d: metrics_of([run for group in groups if group.data == d for run in groups[group]]) for d in data}
    # A table has no room for the metrics of further searches (test/qe/recall@1).
    metrics = {d: [name for name in names if name.count("/") == 1] for d, names in every.items()}
    rest = list(dict.fromkeys(name.split("/")[1] for names in every.values() for name in names if name.count("/") > 1))
    if len(data) > 1:
        metrics = {d: [name for name in names if "recall" in name] or names for d, names in metrics.items()}
    lines: list[list[str]] = []
    ours: dict[int, list[list[Cell | None]]] = {}  # line -> its cells
    notes: dict[str, str] = {}
    for label in dict.fromkeys(group.label for group in groups):
        symbols: dict[str, str] = {}
        cells: list[list[Cell | None]] = []
        samples = []
        for d in data:
            found = [groups.get(Group(label, d, dimension)) for dimension in dimensions[d]]
            for runs in filter(None, found):
                symbols |= marks(runs[0])
                samples.append(str(len(runs)))
            cells += [[cell(runs, metric) if runs else None for runs in found] for metric in metrics[d]]
        notes |= symbols
        seeds = "/".join(dict.fromkeys(samples))

        def line(name: str, text: Callable[[Cell], str], last: str, cells: list[list[Cell | None]] = cells) -> None:
            lines.append(
                [name, *(" / ".join(NONE if c is None else text(c) for c in column) for column in cells), last]
            )

        if "†" not in symbols:
            ours[len(lines)] = cells
        line(label + (f" {''.join(symbols)}" if symbols else ""), lambda c: c.ours, seeds)
        if any(c is not None and c.paper is not None for column in cells for c in column):
            line("paper", lambda c: c.theirs, "")
            line("difference", lambda c: c.difference, "")
    return Layout(
        spans=[(_title(d, dimensions[d]), len(metrics[d])) for d in data],
        columns=[*(name.removeprefix("test/") for d in data for name in metrics[d]), "runs"],
        lines=lines,
        notes=[f"{symbol} {reason}" for symbol, reason in notes.items()]
        + ([f"table.csv has {', '.join(rest)} too"] if rest else [])
        + ([_OF_TWO] if any(len(runs) == 2 for runs in groups.values()) else [])
        + _versions(groups),
        best=frozenset(_best(ours)),
    )


def _best(ours: Mapping[int, Sequence[Sequence[Cell | None]]]) -> Iterator[tuple[int, int, int]]:
    places = {(j, k) for cells in ours.values() for j, column in enumerate(cells) for k in range(len(column))}
    for j, k in places:
        found = {i: cells[j][k] for i, cells in ours.items()}
        means = {i: round(c.mean, 1) for i, c in found.items() if c is not None and not math.isnan(c.mean)}
        if len(means) > 1:
            yield from ((i, j + 1, k) for i, mean in means.items() if mean == max(means.values()))


def further(metrics: Mapping[str, float]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """What other searches than the plain one found (qe, int8-64B): names of metrics, and search -> metric -> value."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        *search, metric = name.removeprefix("test/").split("/")
        if search and name.startswith("test/"):
            found.setdefault("/".join(search), {})[metric] = value
    return list(dict.fromkeys(metric for values in found.values() for metric in values)), found


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """The names of what was measured of the test part, as test/recall@1."""
    return [name for name in dict.fromkeys(name for run in runs for name in run.metrics) if name.startswith("test/")]


def _title(data: str, dimensions: Sequence[int]) -> str:
    return f"{data}, {' / '.join(map(str, dimensions))} dimensions"


def _versions(groups: Groups) -> list[str]:
    return [
        f"{group.label}: its runs were made by {versions} versions of the code"
        for group, runs in groups.items()
        if (versions := len({run.row.get("code") for run in runs})) > 1
    ]


def markdown(table: Layout) -> str:
    """The table in Markdown: percent, mean ± half of the 95 % t-interval over runs."""
    head = ["method", *table.columns]
    if len(table.spans) > 1:  # Markdown has one line of headings
        names = [title.partition(",")[0] for title, width in table.spans for _ in range(width)]
        head[1:-1] = [f"{name} {column}" for name, column in zip(names, table.columns[:-1], strict=True)]
    lines = as_table(head, table.lines)
    caption = f"{'; '.join(title for title, _ in table.spans)}; in percent:"
    return "\n".join([caption, "", *lines, *(["", *(f"- {note}" for note in table.notes)] if table.notes else [])])


def as_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; all columns but the first are numbers."""
    return [_line(head), "|---|" + "---:|" * (len(head) - 1), *map(_line, lines)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


_LATEX = {
    **{c: f"\\{c}" for c in "_%&#$"},
    **{"±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "⊞": r"$^\boxplus$", "□": r"$^\Box$"},
    **{"§": r"$^\S$", "¶": r"$^\P$", "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\~{}", "^": r"\^{}"},
    **{c: f"${c}$" for c in "<>|"},
}


def latex(table: Layout) -> str:
    """The table in LaTeX, the best of ours in bold; needs the packages booktabs and amssymb."""

    def tex(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text)

    def cells_of(i: int, cells: list[str]) -> Iterator[str]:
        for j, text in enumerate(cells):
            parts = text.split(" / ") if j else [text]
            yield " / ".join(
                rf"\textbf{{{tex(part)}}}" if (i, j, k) in table.best else tex(part) for k, part in enumerate(parts)
            )

    start, rules = 2, []
    for _, width in table.spans:
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    spans = " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{tex(title)}}}" for title, width in table.spans)
    return "\n".join([
        "% needs \\usepackage{booktabs,amssymb}; percent, mean and half of the 95 % t-interval over runs",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        rf" & {spans} & \\",
        "".join(rules),
        " & ".join(["Method", *map(tex, table.columns)]) + r" \\",
        r"\midrule",
        *(" & ".join(cells_of(i, cells)) + r" \\" for i, cells in enumerate(table.lines)),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {note}" for note in table.notes),
    ])  # fmt: skip


def as_csv(groups: Groups) -> str:
    """One line a value: data, method, dimension, metric, mean, half_interval, runs, paper, difference, marks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["data", "method", "dimension", "metric", "mean", "half_interval", "runs", "paper", "difference", "marks"]
    )
    for group, runs in groups.items():
        for metric in metrics_of(runs):
            if (c := cell(runs, metric)) is None:
                continue
            half, difference = "" if math.isnan(c.half) else c.half, "" if c.paper is None else c.mean - c.paper
            name, symbols = metric.removeprefix("test/"), "".join(marks(runs[0]))
            writer.writerow(
                [group.data, group.label, group.dimension, name, c.mean, half, len(runs), c.paper, difference, symbols]
            )
    return text.getvalue()


def table2(groups: Groups) -> str | None:
    """The paper's Table II, published Recall@1 [%], with our lines beneath; None without a run on its data sets."""
    table = read("table2")
    ours: dict[tuple[str, int, str], dict[str, str]] = {}
    for group, runs in groups.items():
        if group.data in table["data"] and is_official(runs[0]) and (c := cell(runs, "test/recall@1")) is not None:
            name = (group.label + "".join(marks(runs[0])), group.dimension, runs[0].row["backbone"])
            ours.setdefault(name, {})[group.data] = c.ours
    if not ours:
        return None
    lines = [f"| method | dimension | network | {' | '.join(table['data'])} |", "|---|---:|---|" + "---:|" * 3]
    for row in table["rows"]:
        values = (NONE if value is None else f"{value:.1f}" for value in row["recall@1"])
        lines.append(f"| {row['method']} | {row['dimension']} | {row['network']} | {' | '.join(values)} |")
    for (method, dimension, network), found in ours.items():
        values = (found.get(data, NONE) for data in table["data"])
        lines.append(f"| {method} (this run) | {dimension} | {network} | {' | '.join(values)} |")
    return "\n".join([table["source"], "", *lines])
