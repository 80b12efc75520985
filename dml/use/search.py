"""Query images -> the nearest images of an index: a table, and a picture of the first ones."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dml.data.decode import load_image
from dml.printable import printable
from dml.report.neighbours import Example, draw_neighbours
from dml.use.index import Index
from dml.use.trained import Trained, same_model
from dml.words import counted

_DRAWN, _COLUMNS = 20, 8  # queries and neighbours of the picture


def search(index: Index, model: Trained, queries: Sequence[Path], k: int, picture: Path) -> list[list[Path]]:
    """Print the k nearest images of each query, and draw them.

    An image that is a query and in the index finds itself.

    Args:
        index: opened.
        model: by which its embeddings were made.
        queries: images.
        k: how many, at most those in the index.
        picture: to be written, of the first queries and the first neighbours.

    Returns:
        The paths that were found for each query, nearest first.

    Raises:
        ValueError: the index is of another model, or a query cannot be read, which is named; the store is away.
    """
    about = index.about
    what = (f"the index {index.path}", "give the run that it was made with by --model, or build the index again")
    same_model(about.model, about.dimension, model, what)
    if k > about.images:
        raise ValueError(f"-k {k} is more than the {counted(about.images, 'image')} of {index.path}")
    begun = time.perf_counter()
    embeddings = model.embed(queries).numpy()
    embedding_ms = 1000 * (time.perf_counter() - begun) / len(queries)
    begun = time.perf_counter()
    found = [index.find(one[None], k) for one in embeddings]  # one at a time, as they would come
    search_ms = 1000 * (time.perf_counter() - begun) / len(queries)
    results = []
    for query, (distances, rows) in zip(queries, found, strict=True):
        near = index.paths(rows[0][rows[0] >= 0])
        results.append(near)
        print(printable(str(query)))
        for rank, (distance, path) in enumerate(zip(distances[0], near, strict=False), start=1):
            print(f"{rank:>5} {distance:>10.4f}  {printable(str(path))}")
    print(f"{embedding_ms:.1f} ms to embed and {search_ms:.2f} ms to search, a query ({len(queries)} of them)")
    _draw(queries, results, picture)
    return results


def _draw(queries: Sequence[Path], results: Sequence[Sequence[Path]], picture: Path) -> None:
    gone: list[str] = []

    def image(path: Path) -> Image.Image:
        try:
            return load_image(path)
        except ValueError as error:
            gone.append(str(error))
            return Image.fromarray(np.full((8, 8), 224, dtype=np.uint8)).convert("RGB")

    lines = [
        Example(image(query), str(query), [(image(path), None) for path in near[:_COLUMNS]])
        for query, near in zip(queries[:_DRAWN], results, strict=False)
    ]
    title = "Queries, left, and the nearest images"
    draw_neighbours([(f"{title} (the first {len(lines)} of {len(queries)})", lines)], picture)
    if gone:
        print(printable(f"gray in the picture, {counted(len(gone), 'image')}: {gone[0]}"), file=sys.stderr)
    print(f"Picture: {picture}")
