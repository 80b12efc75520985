"""FAISS: an index by a factory string, trained on a sample and filled in blocks."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from dml.use.embeddings import About, Embeddings

_TRAIN_ELEMENTS = 1 << 27  # numbers that an index is trained on at most: 512 MB


@contextmanager
def build(
    embeddings: Embeddings, folder: Path, *, factory: str = "Flat", parameters: str | None = None
) -> Iterator[tuple[dict[str, Any], Callable[..., Any]]]:
    """Write faiss.index; yields what index.json keeps of it, and its search.

    Args:
        embeddings: a file of them.
        folder: to write into.
        factory: FAISS's string, as IVF1024,PQ32 or HNSW32.
        parameters: of the search, as nprobe=16 or efSearch=64; kept in the index.

    Raises:
        ValueError: FAISS knows no such index, it cannot be trained on so few embeddings, or cannot be written.
    """
    about = embeddings.about
    index = _made(factory, about.dimension)
    if not index.is_trained:
        try:
            index.train(_sample(embeddings))
        except RuntimeError as error:
            raise ValueError(f"--factory {factory} cannot be trained: {_reason(error)}") from error
    for block in embeddings.blocks():
        index.add(np.ascontiguousarray(block))
    if parameters:
        try:
            faiss.ParameterSpace().set_index_parameters(index, parameters)  # type: ignore[arg-type]  # an overload
        except RuntimeError as error:
            raise ValueError(f"--parameters {parameters} is not possible for {factory}: {_reason(error)}") from error
    try:
        faiss.write_index(index, str(folder / "faiss.index"))
    except RuntimeError as error:
        raise ValueError(f"{folder} cannot be written: {_reason(error)}") from error
    yield {"factory": factory, "parameters": parameters}, _finder(index)


def open_store(path: Path, content: dict[str, Any], about: About) -> Callable[..., Any]:
    """The search of an index folder.

    Raises:
        ValueError: its file is not there, is damaged, or is of other embeddings.
    """
    try:
        index = faiss.read_index(str(path / "faiss.index"))
    except RuntimeError as error:
        raise ValueError(f"{path}/faiss.index cannot be read: {_reason(error)}") from error
    if (index.d, index.ntotal) != (about.dimension, about.images):
        raise ValueError(
            f"{path}/faiss.index has {index.ntotal} embeddings of {index.d} dimensions, and index.json says "
            f"{about.images} of {about.dimension}: build the index again"
        )
    if content.get("parameters"):
        faiss.ParameterSpace().set_index_parameters(index, content["parameters"])  # HNSW's are not in the file
    return _finder(index)


def _finder(index: Any) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    def find(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        squared, rows = index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return np.sqrt(np.maximum(squared, 0)), rows

    return find


def _made(factory: str, dimension: int) -> Any:
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise ValueError(f"--factory {factory} is no index that FAISS can make: {_reason(error)}") from error


def _sample(embeddings: Embeddings) -> np.ndarray:
    """Rows from all over the file, in a random order that is always the same."""
    rng, about = np.random.default_rng(0), embeddings.about
    share = min(1.0, _TRAIN_ELEMENTS / (about.images * about.dimension))
    # At least two of each block, so that none is without.
    some = [rng.permutation(block)[: max(2, round(share * len(block)))] for block in embeddings.blocks()]
    return rng.permutation(np.concatenate(some))


def _reason(error: RuntimeError) -> str:
    """FAISS's own words, without the place in its code."""
    return re.split(r"Error: |\.cpp:\d+: ", str(error).strip().splitlines()[0])[-1]
