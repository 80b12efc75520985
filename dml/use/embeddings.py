"""Files of embeddings: paths [N] and embeddings [N, D] as .npz or .parquet, written and read in blocks.

A .npz holds `embeddings` (float32, not compressed), `paths`, `about`, and what is known of the images (COLUMNS); a
.parquet the columns `path`, `embedding` and these, and `about` in its metadata. `about` is JSON, the fields of `About`.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dml.use.missing import optional
from dml.whole_file import whole_file

_BLOCK_ELEMENTS = 1 << 22  # numbers that are read at a time: 16 MB
ENDINGS = (".npz", ".parquet")
# What may be known of images, by its name in .npz -> in .parquet: words [N], and boxes [N, 4] (NaN: none) that they are
# cut to.
COLUMNS = {"labels": "label", "parts": "part", "groups": "group", "boxes": "box"}


@dataclass(frozen=True)
class About:
    """What embeddings must say of themselves to be compared with others.

    Attributes:
        model: fingerprint of the model (Trained.fingerprint).
        checkpoint: where it was.
        dimension: D.
        normalized: whether they have length 1.
        images: N.
        source: fingerprint of the images (paths, sizes, times, boxes, columns) that were to be embedded.
    """

    model: str
    checkpoint: str
    dimension: int
    normalized: bool
    images: int
    source: str

    @classmethod
    def read(cls, text: Any, what: str) -> "About":
        """From JSON.

        Raises:
            ValueError: it is something else; names `what`.
        """
        try:
            found = json.loads(text)
            return cls(**{field.name: found[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{what} was not written by `dml embed`: it does not say of which model it is") from error

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def write_embeddings(
    path: Path,
    about: About,
    paths: Sequence[Path],
    blocks: Iterable[np.ndarray],
    columns: Mapping[str, np.ndarray] = {},
) -> None:
    """Write a file that is there whole or not at all.

    Args:
        path: .npz or .parquet.
        about: of them.
        paths: N.
        blocks: float32 [n, D], N rows together.
        columns: some of COLUMNS, [N] or [N, 4].

    Raises:
        ValueError: parquet needs a package that is not there.
        OSError: it cannot be written.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, about, paths, blocks, columns)
        return
    with whole_file(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
            header = {"descr": "<f4", "fortran_order": False, "shape": (about.images, about.dimension)}
            np.lib.format.write_array_header_1_0(entry, header)
            for block in blocks:
                entry.write(np.ascontiguousarray(block, dtype="<f4").data)
        longest = max((len(str(one)) for one in paths), default=1)
        header = {"descr": f"<U{longest}", "fortran_order": False, "shape": (about.images,)}
        compressed = zipfile.ZipInfo("paths.npy")  # without the time: equal files are equal
        compressed.compress_type = zipfile.ZIP_DEFLATED  # four bytes a character, three of them zero
        with archive.open(compressed, "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for start in range(0, len(paths), 4096):
                part = np.array([str(one) for one in paths[start : start + 4096]], dtype=f"<U{longest}")
                entry.write(part.tobytes())
        for name, values in {**columns, "about": np.array(about.text())}.items():
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def _write_parquet(
    path: Path, about: About, paths: Sequence[Path], blocks: Iterable[np.ndarray], columns: Mapping[str, np.ndarray]
) -> None:
    pa, parquet = (optional(f"pyarrow{module}", "parquet", f"{path}") for module in ("", ".parquet"))
    kinds = {name: pa.list_(pa.float64(), 4) if name == "boxes" else pa.string() for name in columns}
    fields = {"path": pa.string(), "embedding": pa.list_(pa.float32(), about.dimension)}
    schema = pa.schema({**fields, **{COLUMNS[name]: kind for name, kind in kinds.items()}})

    def text(values: Iterable[Any]) -> Any:
        """Parquet's is UTF-8: of a name that is not, its bytes are written as \\xNN."""
        return pa.array([os.fsencode(one).decode(errors="backslashreplace") for one in values], pa.string())

    done = 0
    with (
        whole_file(path) as file,
        parquet.ParquetWriter(file, schema.with_metadata({"dml": about.text()})) as writer,
    ):
        for block in blocks:
            here = slice(done, done + len(block))
            values = pa.FixedSizeListArray.from_arrays(pa.array(block.astype(np.float32).ravel()), about.dimension)
            more = [
                pa.array(column[here].tolist(), kinds[name]) if name == "boxes" else text(column[here].tolist())
                for name, column in columns.items()
            ]
            writer.write_table(pa.table([text(paths[here]), values, *more], schema=schema))
            done += len(block)


class Embeddings:
    """An embeddings file, read in blocks.

    Args:
        path: .npz or .parquet that `write_embeddings` wrote.

    Attributes:
        about: what they say of themselves.

    Raises:
        ValueError: it is not there, or is another kind of file; names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix not in ENDINGS:
            raise ValueError(f"{path} is no file of embeddings: its name must end in {' or '.join(ENDINGS)}")
        if not path.is_file():
            raise ValueError(f"{path} does not exist: `dml embed` writes it")
        try:
            if path.suffix == ".parquet":
                parquet = optional("pyarrow.parquet", "parquet", f"{path}")
                text = (parquet.read_schema(path).metadata or {}).get(b"dml")
            else:
                with np.load(path, allow_pickle=False) as file:
                    text = file["about"].item() if "about" in file else None
        except Exception as error:  # whatever the two readers raise
            if isinstance(error, ValueError) and "pip install" in str(error):
                raise
            raise ValueError(f"{path} cannot be read as a file of embeddings: {error}") from error
        self.about = About.read(text, str(path))

    def blocks(self) -> Iterator[np.ndarray]:
        """Embeddings float32 [n, D], some at a time, in their order."""
        rows = max(1, _BLOCK_ELEMENTS // self.about.dimension)
        if self.path.suffix == ".parquet":
            parquet = optional("pyarrow.parquet", "parquet", f"{self.path}")
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(rows, columns=["embedding"]):
                    flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                    yield flat.astype(np.float32).reshape(-1, self.about.dimension)
            return
        with zipfile.ZipFile(self.path) as archive, archive.open("embeddings.npy") as entry:
            np.lib.format.read_magic(entry)
            shape, _, dtype = np.lib.format.read_array_header_1_0(entry)
            if shape != (self.about.images, self.about.dimension) or dtype != np.float32:
                raise ValueError(f"{self.path} is damaged: it says {self.about.images} images and holds {shape}")
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                yield np.frombuffer(entry.read(4 * count * shape[1]), dtype="<f4").reshape(count, shape[1])

    def paths(self) -> list[str]:
        """Of the images [N]."""
        if self.path.suffix == ".parquet":
            return self._column("path")
        with np.load(self.path, allow_pickle=False) as file:
            return file["paths"].tolist()

    def columns(self) -> dict[str, np.ndarray]:
        """What is known of the images beside: of COLUMNS, those that the file has."""
        if self.path.suffix == ".parquet":
            parquet = optional("pyarrow.parquet", "parquet", f"{self.path}")
            there = parquet.read_schema(self.path).names
            return {name: np.array(self._column(one)) for name, one in COLUMNS.items() if one in there}
        with np.load(self.path, allow_pickle=False) as file:
            return {name: file[name] for name in COLUMNS if name in file}

    def _column(self, name: str) -> list[Any]:
        parquet = optional("pyarrow.parquet", "parquet", f"{self.path}")
        return parquet.read_table(self.path, columns=[name]).column(0).to_pylist()
