"""report.html of several runs: the table, its intervals, which differences hold, the figures, and each run's page."""

import base64
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dml.printable import printable
from dml.report.page import environment
from dml.report.significance import Difference, as_cells, notes, title
from dml.report.tables import Groups, cell, layout, metrics_of

_LARGEST = 4_000_000  # bytes of a figure
_MOST = 40  # rows of a picture of intervals


def render_sweep(groups: Groups, differences: Sequence[Difference], figures: Sequence[Path], out: Path) -> str:
    """The page, for the folder `out`."""
    table = layout(groups)
    context = {
        "title": f"{', '.join(dict.fromkeys(group.data for group in groups))}: {sum(map(len, groups.values()))} runs",
        "spans": table.spans,
        "head": table.columns,
        "lines": [
            [
                [(part, (i, j, k) in table.best) for k, part in enumerate(text.split(" / ") if j else [text])]
                for j, text in enumerate(line)
            ]
            for i, line in enumerate(table.lines)
        ],
        "notes": table.notes,
        "intervals": _intervals(groups),
        "most": _MOST,
        "against": [
            (title(other), *as_cells(differences, other)) for other in dict.fromkeys(one.against for one in differences)
        ],
        "against_notes": notes(differences),
        "figures": [_figure(path) for path in figures],
        "runs": [
            (group.label, group.data, group.dimension, printable(str(run.row["seed"])), *_link(run.folder, out))
            for group, runs in groups.items()
            for run in runs
        ],
    }
    return environment().get_template("sweep.html").render(context)


def _intervals(groups: Groups) -> list[dict[str, Any]]:
    """A picture a metric: the mean of each row, its 95 % t-interval and its runs, as shares of the width."""
    pictures = []
    for data, dimension in dict.fromkeys((group.data, group.dimension) for group in groups):
        rows = {g: runs for g, runs in groups.items() if (g.data, g.dimension) == (data, dimension)}
        for metric in metrics_of([run for runs in rows.values() for run in runs]):
            if metric.count("/") > 1:  # of a further search
                continue
            found = {g.label: (c, runs) for g, runs in rows.items() if (c := cell(runs, metric)) is not None}
            if len(found) < 2:
                continue
            values = {label: [100 * run.metrics[metric] for run in runs] for label, (_, runs) in found.items()}
            ends = {label: _ends(c.mean, c.half) for label, (c, _) in found.items()}
            every = [v for label in found for v in (*values[label], *ends[label]) if math.isfinite(v)]
            if not every:
                continue
            low, high = min(every), max(every)
            wide = (high - low) or 1.0

            def place(value: float, low: float = low, wide: float = wide) -> float:
                return round(100 * (value - low) / wide, 2)

            pictures.append({
                "title": f"{data}, {dimension} dimensions: {metric.removeprefix('test/')} [%]",
                "low": f"{low:.1f}",
                "high": f"{high:.1f}",
                "left_out": max(0, len(found) - _MOST),
                "rows": [
                    (label, place(c.mean), [*map(place, ends[label])], [*map(place, values[label])], c.ours)
                    for label, (c, _) in list(found.items())[:_MOST]
                ],
            })  # fmt: skip
    return pictures


def _ends(mean: float, half: float) -> tuple[float, float]:
    """Of an interval, within 0 to 100 %; the mean itself of a single run."""
    half = 0.0 if math.isnan(half) else half
    return max(min(mean, 0.0), mean - half), min(max(mean, 100.0), mean + half)


def _figure(path: Path) -> tuple[str, str]:
    """Its name and its pixels as an address; empty: it is too large."""
    pixels = path.read_bytes()
    return path.name, "" if len(pixels) > _LARGEST else f"data:image/png;base64,{base64.b64encode(pixels).decode()}"


def _link(folder: Path, out: Path) -> tuple[str, str]:
    """The run's folder as it is seen from the page, and the address of its own page; empty: it has none."""
    shown = os.path.relpath(folder, out)
    page = folder / "report.html"
    # A page that lies in the run's own folder would be this one.
    has = page.is_file() and folder.resolve() != out.resolve()
    return printable(shown), Path(os.path.relpath(page, out)).as_posix() if has else ""
