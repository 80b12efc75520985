"""Of runs that differ in a setting, those of the value that validation chooses; no test metric is looked at."""

from collections.abc import Sequence

import numpy as np

from dml.printable import printable
from dml.report.runs import Run, sample_of


def choose(runs: Sequence[Run], key: str, by: Sequence[str], swept: set[str]) -> tuple[list[Run], list[str]]:
    """Keep of each method, data set and dimension the runs of one value of a setting.

    It is the value whose mean of `protocol.monitor` over seeds and folds is highest; of equal ones that which comes
    first.

    Args:
        runs: of a sweep over the setting and over seeds.
        key: of the row, such as optimizer.lr.
        by, swept: what else tells lines of the table apart, as `group_runs` takes them.

    Returns:
        The runs that are left, and a line for each choice.

    Raises:
        ValueError: a run has no such key or was not validated, or values were tried with other seeds; names it.
    """
    tried: dict[tuple[str, str, int], dict[str, list[Run]]] = {}
    for run in runs:
        if key not in run.settings:
            raise ValueError(f"--choose {key} is no key of {run.folder}")
        if run.settings.get("protocol.monitor") not in run.metrics:
            raise ValueError(f"--choose {key}: {run.folder} has no validation metric that could choose")
        of = run.label(by, swept), run.row["data"], run.row["dimension"]
        tried.setdefault(of, {}).setdefault(str(run.settings[key]), []).append(run)
    left, said = [], []
    for (label, data, _), values in tried.items():
        samples = {value: {sample_of(run) for run in members} for value, members in values.items()}
        if len({frozenset(one) for one in samples.values()}) > 1:
            counts = ", ".join(f"{value}: {len(one)}" for value, one in samples.items())
            raise ValueError(f"--choose {key}: {label} has other seeds or folds of other values ({counts} of them)")
        monitor = next(iter(values.values()))[0].settings["protocol.monitor"]
        means = {value: float(np.mean([run.metrics[monitor] for run in members])) for value, members in values.items()}
        best = max(means, key=lambda value: means[value])
        shown = ", ".join(f"{100 * mean:.1f} ({value})" for value, mean in means.items())
        said.append(printable(f"{label} on {data}: {key}={best} has the best {monitor} of {shown}"))
        left += values[best]
    return left, said
