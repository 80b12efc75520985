"""Pictures of finished runs."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dml.printable import printable
from dml.report.paper import read
from dml.report.runs import Run
from dml.report.tables import mean_and_interval


def _scatter(axes: Any, folder: Path) -> int:
    import matplotlib

    stored = np.load(folder / "test_embeddings.npz")
    embeddings, labels, names = stored["embeddings"], stored["labels"], stored["class_names"].tolist()
    few = len(names) <= 10
    order = np.argsort(labels, kind="stable")  # class after class
    colours = matplotlib.colormaps["tab10" if few else "gist_rainbow"](
        labels[order] if few else labels[order] / len(names)
    )
    # Points as pixels: as shapes, tens of thousands of them make a PDF that no viewer likes.
    axes.scatter(*embeddings[order].T, s=6, color=colours, linewidths=0, rasterized=True)
    for c, name in enumerate(names if len(names) <= 20 else ()):
        members = embeddings[labels == c]
        if len(members):
            # A label on the cluster itself reads without a legend; the median stays on it despite outliers.
            spot = np.median(members, axis=0)
            style = {"fontsize": 11, "fontweight": "bold", "ha": "center", "va": "center", "clip_on": True}
            axes.text(*spot, _short(name), parse_math=False, **style)
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
    figure, axes = canvas(1)
    images = _scatter(axes[0], folder)
    score = "" if mean_average_precision is None else f", mAP {mean_average_precision:.3f}"
    axes[0].set_title(f"{images} test images{score}")
    return _save(figure, folder / "embedding.png")


def draw_side_by_side(panels: Sequence[tuple[str, Path, float | None]], path: Path) -> list[Path]:
    """Draw the embeddings of several runs beside each other (Fig. 4 of the paper).

    Args:
        panels: (title, run folder, mAP if measured) of each run.
        path: of the picture as PNG; PDF and SVG lie beside it.

    Returns:
        The three.
    """
    figure, axes = canvas(len(panels))
    for ax, (title, folder, score) in zip(axes, panels, strict=True):
        _scatter(ax, folder)
        ax.set_title(_title(title) if score is None else f"{_title(title)}\nmAP {score:.3f}", parse_math=False)
    return _save_all(figure, path)


def _short(name: str) -> str:
    """A class's name as a picture has room for it."""
    name = printable(name)
    return name if len(name) <= 24 else f"{name[:23]}…"


def _title(text: str) -> str:
    return textwrap.fill(printable(text), 44)


def transfer(r: np.ndarray, alpha: float) -> np.ndarray:
    """The transfer function w(r; alpha) of eq. 10 for ranks r in [0, 1]."""
    return np.where(r < 0.5, 0.5 * (2 * r) ** alpha, 1 - 0.5 * (2 - 2 * r) ** alpha)


def draw_alpha_sweep(sweeps: Mapping[str, Mapping[float, Sequence[Run]]], path: Path) -> list[Path]:
    """Draw Fig. 3 of the paper: transfer function, its loss component, and Recall@K over alpha with 95 % intervals.

    Each run is a dot beside the mean. No axis leaves 0 to 100 %, where an interval of few runs may.

    Args:
        sweeps: title -> alpha -> runs that are averaged; a panel each.
        path: of the picture as PNG; PDF and SVG lie beside it.

    Returns:
        The three.
    """
    figure, axes = canvas(2 + len(sweeps))
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
            values = [[100 * run.metrics[name] for run in sweep[alpha]] for alpha in alphas]
            means, halves = zip(*map(mean_and_interval, values), strict=True)
            name = name.removeprefix("test/")
            bars = ax.errorbar(alphas, means, np.nan_to_num(halves), marker="o", capsize=3, label=name)
            beside = np.repeat(alphas, [*map(len, values)]) + 0.02 * (alphas[-1] - alphas[0])
            ax.plot(beside, np.concatenate(values), ".", color=bars.lines[0].get_color(), alpha=0.5)
        ax.set_ylim(*np.clip(ax.get_ylim(), 0, 100))
        ax.plot([], [], ".", color="gray", alpha=0.5, label="one run")
        ax.axvline(best, color="gray", linestyle=":", label="the paper's choice")
        ax.set(xlabel=r"$\alpha$", ylabel="Recall@K [%]")
        ax.set_title(_title(title), parse_math=False)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)  # beneath: no corner is free of lines
    return _save_all(figure, path)


def canvas(panels: int) -> tuple[Any, Any]:
    """A figure and its axes, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * panels, 5.2), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no window system, no global state
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path


def _save_all(figure: Any, path: Path) -> list[Path]:
    """As pixels, and for papers as shapes."""
    import matplotlib

    # Publishers refuse fonts of Type 3; the same runs give the same file.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": path.stem}):
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None}, dpi=300)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None}, dpi=300)
    return [_save(figure, path), path.with_suffix(".pdf"), path.with_suffix(".svg")]
