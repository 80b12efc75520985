"""Images of a table: a CSV or Parquet file with a row for each image."""

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from dml.data.dataset import Source
from dml.data.listed import NO_LABEL, Row, source_of, unpacked

GET = "data=table needs data.file=FILE, a .csv, .tsv or .parquet file with a row for each image"


def load(
    *,
    file: str | None = None,
    root: str | None = None,
    path_column: str = "path",
    bytes_column: str = "bytes",
    label_column: str | None = "label",
    split_column: str | None = None,
    query_column: str | None = None,
    gallery_column: str | None = None,
    box_column: str | None = None,
    group_column: str | None = None,
    train_fraction: Annotated[float, Interval(gt=0, lt=1)] | None = 0.5,
    unpacked_dir: str = "data/unpacked",
) -> Source:
    """Read a table. Columns are found by their names; those that are not there and were not asked for are not needed.

    Args:
        file: .csv (commas), .tsv (tabulators), both UTF-8 with a line of names, or .parquet.
        root: where paths that are not absolute begin; None: in the folder of the file.
        path_column: of the images' paths.
        bytes_column: of the images' files as they are (Parquet only), where there is no path; or of structs with such
            `bytes`, as `datasets` writes them. They are written into `unpacked_dir` once, since classes are drawn at
            random; the number in a path (0012/345) is that of the row, from 0.
        label_column: of the class, a word or a number; None: images have no labels, and can only be embedded.
        split_column: train, val, test, query or gallery; None: `split`, if the table has it. Without it, or if all is
            called train, the first `train_fraction` of the classes train and the others test.
        query_column, gallery_column: of the test rows, which are queries and which are in the gallery: 1, true, yes or
            empty, 0, false, no; None: `query` and `gallery`, if the table has them.
        box_column: left, top, right, bottom in pixels; None: `box`, if the table has it.
        group_column: camera, session or the like: an image is searched among those of other groups only; None:
            `group`, if the table has it.
        train_fraction: share of the classes that train, in (0, 1); None: all of them test.
        unpacked_dir: for `bytes_column`.

    Raises:
        ValueError: the file, a column or an image is missing, a value is none that can be, or the parts share classes
            in part; names the row.
    """
    if file is None:
        raise ValueError(GET)
    place = Path(file).expanduser()
    if not place.is_file():
        raise ValueError(f"data.file={file} is no file. {GET}")
    there, read = _opened(place)
    base = place.parent if root is None else Path(root).expanduser()
    given = {"split": split_column, "query": query_column, "gallery": gallery_column, "box": box_column}
    given |= {"group": group_column, "path": path_column, "bytes": bytes_column}
    names = {
        kind: name or kind for kind, name in given.items() if (name or kind) in there or (name and name != kind)
    }  # a name that was given has to be there
    if label_column is not None:
        names["label"] = label_column
    for kind, name in names.items():
        if name not in there:
            raise ValueError(f"data.{kind}_column={name} is no column of data.file={file}: it has {', '.join(there)}")
    column: Callable[[str], Sequence[Any]] = lambda kind: list(read(names[kind]))  # noqa: E731
    if "path" in names:
        images = [base / Path(str(value)).expanduser() for value in column("path")]
    elif "bytes" in names:
        known = place.stat()
        key = f"{place.resolve()} {known.st_size} {known.st_mtime_ns} {names['bytes']}"
        folder = Path(unpacked_dir).expanduser() / f"{place.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        images = unpacked(map(_content, read(names["bytes"])), folder, f"data.file={file}")
    else:
        raise ValueError(
            f"data.file={file} has no column {path_column} with paths and none called {bytes_column} with images: give "
            f"data.path_column=NAME; it has {', '.join(there)}"
        )
    rows = len(images)
    labels = column("label") if "label" in names else [NO_LABEL] * rows
    none = [None] * rows
    others = [column(kind) if kind in names else none for kind in ("split", "query", "gallery", "box", "group")]
    for at, kind in ((1, "query"), (2, "gallery")):
        if kind in names:  # empty is no
            others[at] = ["" if value is None else value for value in others[at]]
    listed = [Row(*values) for values in zip(images, labels, *others, strict=True)]
    return source_of(place.stem, listed, f"data.file={file}", train_fraction)


def columns_of(file: Path) -> list[str]:
    """The names of a table's columns.

    Raises:
        ValueError: it is no table.
    """
    return _opened(file)[0]


def _content(value: Any) -> bytes | None:
    """The file of an image, which may lie in a struct."""
    return value.get("bytes") if isinstance(value, dict) else value


def _opened(file: Path) -> tuple[list[str], Callable[[str], Iterable[Any]]]:
    """The names of a table's columns, and what reads the values of one. Text is text; of CSV an empty field is None.

    Raises:
        ValueError: it is no table.
    """
    if file.suffix.lower() in (".parquet", ".pq"):
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError("data=table reads Parquet with pyarrow: pip install -e '.[parquet]'") from error
        try:
            parquet = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowException as error:
            raise ValueError(f"data.file={file} is no Parquet file: {str(error).splitlines()[0]}") from error

        def values(name: str) -> Iterator[Any]:
            for batch in parquet.iter_batches(256, columns=[name]):
                yield from batch.column(name).to_pylist()

        return parquet.schema_arrow.names, values
    if file.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise ValueError(f"data.file={file} is not read: {GET}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = list(csv.reader(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ","))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data.file={file} is no table of text in UTF-8: {error}") from error
    lines = [line for line in lines if any(line)]
    if len(lines) < 2:
        raise ValueError(f"data.file={file} has no row below its line of names")
    names = [name.strip() for name in lines[0]]
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(names):
            raise ValueError(f"data.file={file}: row {number} has {len(line)} fields and not {len(names)}: {line}")
    table = {name: [line[i].strip() or None for line in lines[1:]] for i, name in enumerate(names)}
    return names, table.__getitem__
