"""Tables of finished runs, in Markdown."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dml.report.runs import Run


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t-interval (NaN for a single value)."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(half)


def method_table(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str]) -> str:
    """One line a method: mean +- 95 % t-interval over seeds of each metric, in percent."""
    lines = [
        "| method | " + " | ".join(name.removeprefix("test/") for name in metrics) + " | seeds |",
        "|---|" + "---:|" * (len(metrics) + 1),
    ]
    for method, runs in groups.items():
        cells = []
        for name in metrics:
            mean, half = mean_and_interval([run.metrics[name] for run in runs])
            cells.append(f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}"))
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(runs)} |")
    return "\n".join(lines)
