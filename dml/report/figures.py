"""Pictures of finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


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


def draw_side_by_side(panels: Sequence[tuple[str, Path, float]], path: Path) -> Path:
    """Draw the embeddings of several runs beside each other (Fig. 4 of the paper).

    Args:
        panels: (title, run folder, mAP) of each run.
        path: of the picture.
    """
    figure, axes = _figure(len(panels))
    for ax, (title, folder, score) in zip(axes, panels, strict=True):
        _scatter(ax, folder)
        ax.set_title(f"{title}\nmAP {score:.3f}")
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
