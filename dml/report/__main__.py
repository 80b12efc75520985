"""Tables and pictures of finished runs: `python -m dml.report DIR... [--by KEY] [--choose KEY] [--against ROW]`.

Writes table.md, table.csv and table.tex; figure3 where NRA's alpha was swept; figure4 of two-dimensional embeddings
(each as PNG, PDF and SVG); report.html, all of it on one page. With --against also significance.csv: which rows differ.
"""

import argparse
import sys
from pathlib import Path

from dml.printable import tolerant_output
from dml.report.choice import choose
from dml.report.figures import draw_alpha_sweep, draw_side_by_side
from dml.report.runs import Group, Run, group_runs, pruned, read_runs, swept_alphas, unfinished
from dml.report.significance import as_csv as differences_as_csv
from dml.report.significance import as_text, compare
from dml.report.sweep_page import render_sweep
from dml.report.tables import as_csv, latex, layout, markdown, table2
from dml.words import counted


def _path(text: str) -> Path:
    return Path(text).expanduser()


def main(arguments: list[str] | None = None) -> None:
    """Print and write what the runs have to show; a mistake is one line on standard error."""
    tolerant_output()
    parser = argparse.ArgumentParser(
        prog="python -m dml.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="+", type=_path, metavar="DIR", help="folders of finished runs: a sweep's, ..."
    )
    parser.add_argument("--by", action="append", default=[], metavar="KEY", help="one line a value, as loss.mining")
    parser.add_argument(
        "--choose", metavar="KEY", help="of each method the value that validation chooses, as optimizer.lr"
    )
    parser.add_argument("--against", metavar="ROW", help="which rows differ from this one (nra, or a value of KEY)?")
    parser.add_argument("--out", type=_path, help="folder to write into; the first DIR by default")
    chosen = parser.parse_args(arguments)
    out = chosen.out or chosen.folders[0]
    try:
        runs = read_runs(chosen.folders)
        swept = swept_alphas(runs)
        runs, choices = choose(runs, chosen.choose, chosen.by, swept) if chosen.choose else (runs, [])
        groups = group_runs(runs, chosen.by, swept)
        differences = [] if chosen.against is None else compare(groups, chosen.against)
    except ValueError as error:
        sys.exit(str(error))
    table = layout(groups)
    chosen_values = "\n".join(f"- {line}" for line in choices)
    compared = as_text(differences) if differences else None
    text = "\n\n".join(filter(None, [markdown(table), chosen_values, table2(groups), compared]))
    print(text)
    if repeats := len(runs) - sum(map(len, groups.values())):
        print(f"\nNot counted, as they repeat a seed of another: {counted(repeats, 'run')}.")
    if open_ends := unfinished(chosen.folders):
        print(f"\nNot counted, as they are not finished: {counted(len(open_ends), 'run')}; the first: {open_ends[0]}")
    if given_up := pruned(chosen.folders):
        print(f"\nNot counted, as a search pruned them: {counted(len(given_up), 'run')}; the first: {given_up[0]}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").touch()
    except OSError as error:
        sys.exit(f"{out} cannot be written into ({error.strerror}): --out DIR takes another folder")
    files = {"table.md": text + "\n", "table.csv": as_csv(groups), "table.tex": latex(table) + "\n"}
    if differences:
        files["significance.csv"] = differences_as_csv(differences)
    for name, content in files.items():
        (out / name).write_text(content, encoding="utf-8")
    pictures = []
    if swept:
        pictures.append(draw_alpha_sweep(_by_alpha(groups, chosen.by, swept), out / "figure3.png"))
    if all(
        group.dimension == 2 and (runs[0].folder / "test_embeddings.npz").is_file() for group, runs in groups.items()
    ):
        pictures.append(draw_side_by_side(_panels(groups), out / "figure4.png"))
    if not any(run.folder.resolve() == out.resolve() for run in runs):  # whose report.html is a run's own
        page = render_sweep(groups, differences, [drawn[0] for drawn in pictures], out)
        files["report.html"] = page
        (out / "report.html").write_text(page, encoding="utf-8")
    print(f"\nFiles in {out}:", *files, *(picture.name for drawn in pictures for picture in drawn))


def _by_alpha(groups: dict[Group, list[Run]], by: list[str], swept: set[str]) -> dict[str, dict[float, list[Run]]]:
    panels: dict[str, dict[float, list[Run]]] = {}
    for group, runs in groups.items():
        if (key := runs[0].alpha_key) in swept and key:
            title = f"{runs[0].label(one for one in by if one != key)}: {group.data}, {group.dimension} dimensions"
            panels.setdefault(title, {})[float(runs[0].settings[key])] = runs
    return {title: alphas for title, alphas in panels.items() if len(alphas) > 1}


def _panels(groups: dict[Group, list[Run]]) -> list[tuple[str, Path, float | None]]:
    return [
        (f"{group.label}, seed {runs[0].row['seed']}", runs[0].folder, runs[0].metrics.get("test/map"))
        for group, runs in groups.items()
    ]


if __name__ == "__main__":
    main()
