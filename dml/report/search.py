"""The picture of a search: what each trial came to, and by the value of each setting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dml.printable import printable
from dml.report.figures import canvas


class Trial(NamedTuple):
    """A trial: its job's number, setting -> value, what it came to, and how it ended (complete, pruned or fail)."""

    job: int
    params: dict[str, Any]
    value: float | None
    state: str


def draw_search(trials: Sequence[Trial], path: Path) -> None:
    """Draw a panel of all trials in turn with the best so far, and a panel for each setting.

    Args:
        trials: one at least is complete.
        path: of the picture.
    """
    from matplotlib.ticker import MaxNLocator

    keys = list(trials[0].params)
    figure, axes = canvas(1 + len(keys))
    done = [trial for trial in trials if trial.state == "complete"]
    pruned = [trial for trial in trials if trial.state == "pruned" and trial.value is not None]
    best = [max(float(t.value or 0) for t in done[: i + 1]) for i in range(len(done))]
    axes[0].step([trial.job for trial in done], best, where="post", color="gray", label="best so far")
    axes[0].set(xlabel="job", ylabel="validation metric")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax, key in zip(axes, [None, *keys], strict=True):
        places, names = _places([trial.job if key is None else trial.params[key] for trial in trials])
        for some, style, label in ((done, {}, "complete"), (pruned, {"facecolors": "none"}, "pruned")):
            shown = [(place, trial.value) for place, trial in zip(places, trials, strict=True) if trial in some]
            x, y = zip(*shown, strict=True) if shown else ((), ())
            ax.scatter(x, y, s=24, edgecolors="tab:blue", label=label, **style)
        if key is not None:
            ax.set_xlabel(printable(key))
            if names:
                ax.set_xticks(range(len(names)), names, parse_math=False)
            elif min(places) > 0 and max(places) > 20 * min(places):
                ax.set_xscale("log")
    failed = len(trials) - len(done) - len(pruned)
    axes[0].set_title(f"{len(trials)} trials, {failed} failed")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def _places(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Where values stand on their axis: as numbers, if all are. Else also their names, in the order of places."""
    try:
        return [float(value) for value in values], []  # a choice of numbers comes as texts
    except (TypeError, ValueError):
        names = list(dict.fromkeys(printable(str(value)) for value in values))
        return [float(names.index(printable(str(value)))) for value in values], names
