"""What a run or an evaluation leaves behind: its file of results, its table, its list of broken images."""

import json
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from dml.app.build import Built
from dml.printable import printable
from dml.report.tables import further
from dml.whole_file import write_whole
from dml.words import counted


def write_result(file: Path, metrics: dict[str, float], row: dict[str, Any], **more: Any) -> None:
    """Write metrics and row of a run that is finished: metrics.json or evaluation.json."""
    # The file is the sign of a finished run, so it appears whole or not at all.
    content = {"metrics": metrics, **more, "row": row}
    # A config of YAML can hold a value that JSON cannot (bytes): not to be the end of a result.
    write_whole(file, (json.dumps(content, indent=2, default=str) + "\n").encode())


def print_table(metrics: dict[str, float], folder: Path, before: dict[str, float] | None = None) -> None:
    """The metrics, and beside those of the validation part what they were before the first step."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    known = before is not None and any(name in before for name in metrics)
    if known:
        table.add_column("before training", justify="right")
    for name, value in metrics.items():
        if name.count("/") > 1:
            continue
        then = [f"{before[name]:.4f}" if before and name in before else ""] if known else []
        table.add_row(name, f"{value:.4f}", *then)
    Console().print(table)
    names, found = further(metrics)
    if found:
        table = Table("search", *names)
        for search, values in found.items():
            table.add_row(search, *(f"{values[name]:.4f}" if name in values else "" for name in names))
        Console().print(table)
    print(f"Files: {folder}")


@rank_zero_only
def list_broken(built: Built, folder: Path) -> None:
    """Tell of the images that are left out, and list them in bad_images.txt."""
    if not built.broken:
        return
    # The names as the disk has them, for who hands them to another program; but a line is one image.
    lines = [f"{_in_one_line(str(image))}\t{printable(reason)}\n" for image, reason in built.broken.items()]
    write_whole(folder / "bad_images.txt", "".join(lines).encode(errors="surrogateescape"))
    what = f"{counted(len(lines), 'image')} cannot be decoded and {'is' if len(lines) == 1 else 'are'} left out"
    print(f"{what} (data.on_error=skip): {folder / 'bad_images.txt'}")


def _in_one_line(name: str) -> str:
    return "".join(repr(c)[1:-1] if c in "\t\n\r" else c for c in name)
