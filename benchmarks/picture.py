"""The picture of the losses' tables: time and memory over batch size, ours, pml's and the bare product, both log-log.

`python -m benchmarks.picture docs/performance.md docs/figures/losses.png` draws it of any text that holds the tables;
`python -m benchmarks.losses` (make bench) of what it has just printed.
"""

import re
import sys
from pathlib import Path

SHOWN = {
    "product": ("the bare product", "black", ":"),
    "nra": ("NRA", "tab:blue", "-"),
    "nra (plain)": ("NRA, plain autograd", "tab:blue", "--"),
    "hard triplet": ("hard triplet", "tab:orange", "-"),
    "hard triplet (pml)": ("hard triplet (pml)", "tab:orange", "--"),
    "contrastive": ("contrastive", "tab:green", "-"),
    "contrastive (pml)": ("contrastive (pml)", "tab:green", "--"),
}
Table = dict[str, tuple[float, float]]  # case -> ms, MB


def tables_in(text: str) -> dict[int, Table]:
    """Batch size -> the table of that size in a text. The product is the faster of its two kernels."""
    found: dict[int, Table] = {}
    table: Table = {}
    for line in text.splitlines():
        if header := re.match(r"\| m = ([\d,]+), d = \d+ \| ms \| times the product \| extra MB \|", line):
            table = found.setdefault(int(header[1].replace(",", "")), {})
        elif row := re.match(r"\| ([^|]+) \| ([\d.]+) \| [\d.]+ \| (\d+) \|", line):
            table[row[1]] = float(row[2]), float(row[3])
        elif not line.startswith("|"):
            table = {}
    for each in found.values():
        products = [value for name, value in each.items() if name.startswith("product")]
        each["product"] = min(products)
    return found


def draw(text: str, path: Path) -> None:
    """Draw the tables in a text.

    Raises:
        ValueError: it holds tables of fewer than two sizes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = tables_in(text)
    if len(found) < 2:
        raise ValueError(f"tables of {len(found)} batch size(s): the picture needs two or more (--sizes)")
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (ax, title, unit) in enumerate(
        zip(figure.subplots(1, 2), ("time", "extra memory"), ("ms", "MB"), strict=True)
    ):
        for name, (label, colour, style) in SHOWN.items():
            sizes = [m for m in sorted(found) if name in found[m] and found[m][name][i] > 0]
            values = [found[m][name][i] for m in sizes]
            if values:  # cases that were not run are not in the legend
                ax.plot(sizes, values, style, color=colour, marker="o", markersize=4, label=label)
        ax.set(xscale="log", yscale="log", xlabel="embeddings in a batch", ylabel=f"{title} [{unit}]", title=title)
        ax.set_xticks(sorted(found), [f"{m:,}" for m in sorted(found)])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]))
