"""Tables and pictures of finished runs: `python -m dml.report table DIR...`, `python -m dml.report figure4 DIR`."""

import argparse
import sys
from pathlib import Path

from dml.report.figures import draw_side_by_side
from dml.report.runs import Run, group_runs, read_runs
from dml.report.tables import method_table


def main(arguments: list[str] | None = None) -> None:
    """Print and write what the command asks for; a mistake is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m dml.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="mean and 95 %% t-interval over seeds, one line a method")
    figure4 = commands.add_parser("figure4", help="2-D embeddings side by side, and their table")
    for command in (table, figure4):
        command.add_argument("folders", nargs="+", type=Path, help="folders of finished runs (a sweep's, or several)")
        command.add_argument("--by", action="append", default=[], metavar="KEY", help="one line a value, as loss.alpha")
    chosen = parser.parse_args(arguments)
    try:
        groups = group_runs(read_runs(chosen.folders), chosen.by)
        names = [name for name in next(iter(groups.values()))[0].metrics if name.startswith("test/")]
        text = method_table(groups, names)
        print(text)
        (chosen.folders[0] / "table.md").write_text(text + "\n")
        if chosen.command == "figure4":
            print(f"Picture: {draw_side_by_side(_panels(groups), chosen.folders[0] / 'figure4.png')}")
    except ValueError as error:
        sys.exit(str(error))


def _panels(groups: dict[str, list[Run]]) -> list[tuple[str, Path, float]]:
    panels = []
    for method, runs in groups.items():
        run = min(runs, key=lambda r: r.row["seed"])
        if run.row["dimension"] != 2:
            raise ValueError(f"{run.folder} has embeddings of {run.row['dimension']} dimensions; figure4 draws 2")
        panels.append((f"{method}, seed {run.row['seed']}", run.folder, run.metrics["test/map"]))
    return panels


if __name__ == "__main__":
    main()
