"""Curves as shapes: what a template needs to draw them, in units of a picture of 320 x 160."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_W, _H = 320, 160


def panels(curves: Mapping[str, Sequence[Sequence[float]]], tested: int | None = None) -> list[dict[str, Any]]:
    """A panel for the loss, one for the learning rate, one for all that validation measured.

    Args:
        curves: name -> [[step, value], ...]; values that are not finite are left out.
        tested: the step that was chosen for the test, to be marked; None: it is not known.
    """
    finite = {name: [(s, v) for s, v in curve if math.isfinite(v)] for name, curve in curves.items()}
    finite = {name: curve for name, curve in finite.items() if curve}
    measured = [name for name in finite if not name.startswith("train/")]
    wanted = [("loss", ["train/loss"]), ("validation", measured), ("learning rate", ["train/learning_rate"])]
    found = [(title, {name: finite[name] for name in names if name in finite}) for title, names in wanted]
    return [_panel(title, lines, tested) for title, lines in found if lines]


def _panel(title: str, lines: Mapping[str, list[tuple[float, float]]], tested: int | None) -> dict[str, Any]:
    steps = [s for curve in lines.values() for s, _ in curve] + ([] if tested is None else [tested])
    values = [v for curve in lines.values() for _, v in curve]
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    wide, tall = (right - left) or 1, (high - low) or 1

    def place(step: float, value: float) -> tuple[float, float]:
        y = _H / 2 if high == low else _H * (high - value) / tall
        return round((step - left) / wide * _W, 1), round(y, 1)

    return {
        "title": title,
        "steps": (f"{left:,.0f}", f"{right:,.0f}"),
        "values": (f"{low:.4g}", f"{high:.4g}"),
        "tested": None if tested is None else (place(tested, high)[0], f"{tested:,}"),
        "lines": [
            {
                "name": name,
                "path": " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve)),
                "end": place(*curve[-1]),
                "last": f"{curve[-1][1]:.4g}",
                "best": f"{max(v for _, v in curve):.4g}",
            }
            for name, curve in lines.items()
        ],
    }
