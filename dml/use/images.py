"""What a user names on the command line -> paths of images: files, folders, tables of paths, standard input."""

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dml.data.tree import readable, said
from dml.printable import printable
from dml.use.missing import optional

_TABLES = (".csv", ".tsv", ".txt", ".parquet")


def find_images(given: Sequence[str], column: str | None = None, root: Path | None = None) -> list[Path]:
    """All images that are named, in the order of the names, each once.

    Args:
        given: files; folders, of which all images at any depth are taken, sorted; tables (.csv, .tsv, .parquet with a
            column of paths, .txt with a path a line); - for standard input, a path a line.
        column: of the tables; None: `path`, or the only one.
        root: what relative paths of tables and of standard input are below; None: the table's folder, of standard input
            the current one.

    Raises:
        ValueError: one is not there, or holds no image; names it.
    """
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name).expanduser()
        some: Iterable[Path]
        if name == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            some = _below(root or Path(), filter(None, lines))
        elif path.is_dir():
            some = _in_folder(path)
        elif not path.is_file():
            raise ValueError(f"{path} does not exist")
        elif path.suffix.lower() in _TABLES:
            some = _below(root or path.parent, _in_table(path, column))
        else:
            some = [path]
        before = len(found)
        found |= dict.fromkeys(some)
        if len(found) == before and name != "-" and not path.is_file():
            raise ValueError(f"{path} names no image that was not named before")
    if not found:
        raise ValueError("no image is named")
    return list(found)


def _below(root: Path, names: Iterable[str]) -> Iterator[Path]:
    return (root / Path(name).expanduser() for name in names)


def _in_folder(folder: Path) -> list[Path]:
    """Links are followed, and what is no image is passed over and told; hidden files and folders are no images."""
    ends, passed_over, seen, images = readable(), Counter[str](), set[str](), []
    for here, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            end = os.path.splitext(name)[1].lower()
            if end in ends and not name.startswith("."):
                images.append(Path(here, name))
            else:
                passed_over[end or "no extension"] += 1
    if not images:
        raise ValueError(f"{folder} holds no image ({', '.join(sorted(ends))}){said(passed_over, ', but ')}")
    if passed_over:
        print(printable(f"{folder}: passed over {said(passed_over)}"), file=sys.stderr)
    return sorted(images)


def _in_table(path: Path, column: str | None) -> list[str]:
    try:
        if path.suffix.lower() == ".txt":
            return list(filter(None, path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()))
        if path.suffix.lower() == ".parquet":
            parquet = optional("pyarrow.parquet", "parquet", str(path))
            names = parquet.read_schema(path).names
            return parquet.read_table(path, columns=[_column(path, names, column)]).column(0).to_pylist()
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            chosen = _column(path, list(rows.fieldnames or ()), column)
            return [row[chosen] for row in rows if row[chosen]]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _column(path: Path, names: list[str], column: str | None) -> str:
    chosen = column or (names[0] if len(names) == 1 else "path")
    if chosen not in names:
        raise ValueError(f"{path} has no column {chosen}: --column takes another of {', '.join(names) or 'none'}")
    return chosen
