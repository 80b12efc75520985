"""Pictures of finished runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dml.report.paper import read
from dml.report.runs import Run
from dml.report.tables import mean_and_interval


def _scatter(axes: Any, folder: Path) -> int:
    import matplotlib

    stored = np.load(folder / "test_embeddings.npz")
    embeddings, labels, names = stored["embeddings"], stored["labels"], stored["class_names"].tolist()
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "gist_rainbow"]
    for c, name in enumerate(names):
        members = embeddings[labels == c]
        colour = colours(c if len(names) <= 10 else c / len(names))
        axes.scatter(members[:, 0], members[:, 1], s=6, color=colour, label=name, linewidths=0)
        if len(members) and len(names) <= 20:
            # A label on the cluster itself reads without a legend; the median stays on it despite outliers.
            spot = np.median(members, axis=0)
            axes.text(*spot, name, fontsize=11, fontweight="bold", ha="center", va="center")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    return len(labels)


def draw_embedding(folder: Path, mean_average_precision: float | None) -> Path:
    """Draw test_embeddings.npz of a run folder as embedding.png: the 2-D test embeddings coloured by class.

    Args:
        folder: the run's; test_embeddings.npz holds embeddings [N, 2], labels [N] and class_names.
        mean_average_precision: for the title, if it was measured.

    Returns:
        The picture's path.
    """
    figure, axes = _figure(1)
    images = _scatter(axes[0], folder)
    score = "" if mean_average_precision is None else f", mAP {mean_average_precision:.3f}"
    axes[0].set_title(f"{images} test images{score}")
    return _save(figure, folder / "embedding.png")


def draw_side_by_side(panels: Sequence[tuple[str, Path, float | None]], path: Path) -> Path:
    """Draw the embeddings of several runs beside each other (Fig. 4 of the paper).

    Args:
        panels: (title, run folder, mAP if measured) of each run.
        path: of the picture.
    """
    figure, axes = _figure(len(panels))
    for ax, (title, folder, score) in zip(axes, panels, strict=True):
        _scatter(ax, folder)
        ax.set_title(title if score is None else f"{title}\nmAP {score:.3f}")
    return _save(figure, path)


def transfer(r: np.ndarray, alpha: float) -> np.ndarray:
    """The transfer function w(r; alpha) of eq. 10 for ranks r in [0, 1]."""
    return np.where(r < 0.5, 0.5 * (2 * r) ** alpha, 1 - 0.5 * (2 - 2 * r) ** alpha)


def draw_alpha_sweep(sweeps: Mapping[str, Mapping[float, Sequence[Run]]], path: Path) -> Path:
    """Draw Fig. 3 of the paper: transfer function, its loss component, and Recall@K over alpha with 95 % intervals.

    Args:
        sweeps: title -> alpha -> runs that are averaged; a panel each.
        path: of the picture.
    """
    figure, axes = _figure(2 + len(sweeps))
    ranks = np.linspace(0, 1, 401)
    for alpha in sorted({alpha for sweep in sweeps.values() for alpha in sweep}):
        w = transfer(ranks, alpha)
        axes[0].plot(ranks, w, label=rf"$\alpha$ = {alpha:g}")
        with np.errstate(divide="ignore"):
            axes[1].plot(ranks, -np.log(1 - w), label=rf"$\alpha$ = {alpha:g}")
    axes[0].set(title="transfer function", xlabel="rank r", ylabel=r"$w(r; \alpha)$")
    axes[1].set(title="loss component of a positive", xlabel="rank r", ylabel=r"$-\log(1 - w(r; \alpha))$", ylim=(0, 6))
    axes[0].legend()
    best = read("figure3")["best_alpha"]
    for ax, (title, sweep) in zip(axes[2:], sweeps.items(), strict=True):
        alphas = sorted(sweep)
        runs = [run for alpha in alphas for run in sweep[alpha]]
        for name in (name for name in runs[0].metrics if name.startswith("test/recall@")):
            if any(name not in run.metrics for run in runs):
                continue
            values = [mean_and_interval([100 * run.metrics[name] for run in sweep[alpha]]) for alpha in alphas]
            means, halves = zip(*values, strict=True)
            ax.errorbar(alphas, means, np.nan_to_num(halves), marker="o", capsize=3, label=name.removeprefix("test/"))
        ax.axvline(best, color="gray", linestyle=":", label="the paper's choice")
        ax.set(title=title, xlabel=r"$\alpha$", ylabel="Recall@K [%]")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)  # beneath: no corner is free of lines
    return _save(figure, path)


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * panels, 5.2), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no window system, no global state
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
