"""An index of embeddings: a folder with index.json, paths.npy and what the store keeps, there whole or not at all.

Who searches one asks for the nearest of some queries by Euclidean distance and gets rows of the embeddings file;
stores/ has the ways to keep and find them.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch

from dml.data.decode import Box
from dml.retrieval.tiles import squared_distances
from dml.use.embeddings import COLUMNS, About, Embeddings
from dml.use.stores import faiss_store, qdrant_store
from dml.whole_file import whole_folder, write_whole
from dml.words import counted

STORES = {"faiss": faiss_store, "qdrant": qdrant_store}
Find = Callable[
    [np.ndarray, int], tuple[np.ndarray, np.ndarray]
]  # queries [Q, D], k -> distances, rows [Q, k]; -1: none


class Quality(NamedTuple):
    """How well a store finds what exact search finds, on a sample.

    Attributes:
        recall: share of the k nearest that are found; what is as near as the k-th counts.
        k, queries: how many.
        milliseconds: of a query, asked one at a time.
        exact: milliseconds a query of an exact search in blocks, asked all at once.
    """

    recall: float
    k: int
    queries: int
    milliseconds: float
    exact: float


def build_index(embeddings: Embeddings, out: Path, store: str, **settings: Any) -> Quality:
    """Put embeddings into an index, in blocks.

    Args:
        embeddings: a file of them.
        out: the folder.
        store: a key of STORES.
        settings: of the store.

    Raises:
        ValueError: the store refuses or cannot be reached; nothing is left then.
        OSError: `out` is there, or a file cannot be written.
    """
    with whole_folder(out) as folder:
        paths = embeddings.paths()
        np.save(folder / "paths.npy", np.array([os.fsencode(path) for path in paths]))
        for name, column in embeddings.columns().items():
            np.save(folder / f"{name}.npy", column)
        with STORES[store].build(embeddings, folder, **settings) as (kept, find):
            quality = measure(embeddings, find)
            content = {"about": asdict(embeddings.about), "store": store, **kept, "quality": quality._asdict()}
            write_whole(folder / "index.json", json.dumps(content, indent=2).encode())
    return quality


def measure(embeddings: Embeddings, find: Find, k: int = 10, sample: int = 1000) -> Quality:
    """Hold a store against an exact search for some of the embeddings themselves, each among the others.

    Args:
        embeddings: that are in the store.
        find: of the store.
        k: neighbours.
        sample: queries, chosen at random by seed 0.
    """
    total = embeddings.about.images
    k = min(k, total - 1)
    rows = np.sort(np.random.default_rng(0).permutation(total)[:sample])
    if k == 0:
        return Quality(1.0, 0, 0, 0.0, 0.0)
    queries = np.concatenate([block[mine - start] for start, block, mine in _having(embeddings, rows)])
    found = np.full((len(rows), k), -1)
    begun = time.perf_counter()
    answers = [find(query[None], k + 1)[1][0] for query in queries]
    milliseconds = 1000 * (time.perf_counter() - begun) / len(rows)
    for i, answer in enumerate(answers):
        others = answer[(answer != rows[i]) & (answer >= 0)][:k]
        found[i, : len(others)] = others
    vectors = np.full((*found.shape, queries.shape[1]), np.nan, dtype=np.float32)
    nearest = np.full((len(rows), k), np.inf, dtype=np.float32)
    seconds = 0.0
    for start, block, _ in _having(embeddings, rows):
        here = (found >= start) & (found < start + len(block))
        vectors[here] = block[found[here] - start]
        begun = time.perf_counter()
        some, ids = faiss.knn(queries, block, min(k + 1, len(block)))
        some[ids + start == rows[:, None]] = np.inf
        nearest = np.sort(np.concatenate([nearest, some], axis=1), axis=1)[:, :k]
        seconds += time.perf_counter() - begun
    distances = squared_distances(torch.from_numpy(vectors), torch.from_numpy(queries[:, None])).numpy()
    # faiss.knn subtracts a product in float32 from squared lengths, which rounds by about their eighth digit.
    rounding = 1e-6 * 2 * (queries**2).sum(axis=1).max() + 1e-5 * nearest[:, -1]
    hits = distances <= (nearest[:, -1] + rounding)[:, None]  # NaN, of what was not found, is none
    return Quality(float(hits.mean()), k, len(rows), milliseconds, 1000 * seconds / len(rows))


def _having(embeddings: Embeddings, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Where each block begins, the block, and which of the rows are in it."""
    start = 0
    for block in embeddings.blocks():
        yield start, block, rows[(rows >= start) & (rows < start + len(block))]
        start += len(block)


class Index:
    """An index folder, opened to be searched.

    Args:
        path: the folder.

    Attributes:
        about: of the embeddings in it.
        columns: what is known of their images, [N] or [N, 4] by name (embeddings.COLUMNS).

    Raises:
        ValueError: it is no index, or its store cannot be reached.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = json.loads((path / "index.json").read_text())
            self.about = About.read(json.dumps(self.content["about"]), str(path))
            self._paths = np.load(path / "paths.npy", mmap_mode="r", allow_pickle=False)
            self.columns = {
                name: np.load(file, mmap_mode="r", allow_pickle=False)
                for name in COLUMNS
                if (file := path / f"{name}.npy").is_file()
            }
            store = STORES[self.content["store"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no index that `dml index` made: {error}") from error
        for name, column in {"paths": self._paths, **self.columns}.items():
            if len(column) != self.about.images:
                raise ValueError(f"{path} is damaged: it has {len(column)} of {self.about.images} {name}")
        self.find: Find = store.open_store(path, self.content, self.about)

    def paths(self, rows: Sequence[int]) -> list[Path]:
        """Of some rows."""
        return [Path(os.fsdecode(self._paths[row])) for row in rows]

    def labels(self, rows: Sequence[int]) -> list[str]:
        """Of some rows; empty where there are none."""
        return [str(self.columns["labels"][row]) if "labels" in self.columns else "" for row in rows]

    def boxes(self, rows: Sequence[int]) -> list[Box | None]:
        """What some rows were cut to."""
        found = [self.columns["boxes"][row].tolist() if "boxes" in self.columns else [np.nan] for row in rows]
        return [None if np.isnan(box).any() else tuple(box) for box in found]

    def said(self) -> str:
        """What it is, in words."""
        quality = Quality(**self.content["quality"])
        return f"{counted(self.about.images, 'image')}, {self.content['store']}; {quality_said(quality)}"


def quality_said(quality: Quality) -> str:
    """In words."""
    return (
        f"recall@{quality.k} {quality.recall:.4f} against exact search ({quality.queries:,} of the images as "
        f"queries), {quality.milliseconds:.2f} ms a query (exact search, all at once: {quality.exact:.2f})"
    )
