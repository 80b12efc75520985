"""Query images -> the nearest images of an index: a table, and a picture of the first ones."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dml.data.decode import Box, load_image
from dml.printable import printable
from dml.report.neighbours import Example, draw_neighbours
from dml.use.images import Images
from dml.use.index import Index
from dml.use.trained import Trained, same_model
from dml.words import counted

_DRAWN, _COLUMNS = 20, 8  # queries and neighbours of the picture


def search(index: Index, model: Trained, queries: Images, k: int, picture: Path) -> list[list[Path]]:
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
    count = len(queries.entries)
    paths, boxes = zip(*queries.entries, strict=True)
    model.embed(paths[:1], boxes=boxes[:1])  # the first call takes longer than all that follow
    begun = time.perf_counter()
    embeddings = model.embed(paths, boxes=boxes).numpy()
    embedding_ms = 1000 * (time.perf_counter() - begun) / count
    begun = time.perf_counter()
    found = [index.find(one[None], k) for one in embeddings]  # one at a time, as they would come
    search_ms = 1000 * (time.perf_counter() - begun) / count
    rows = [near[0][near[0] >= 0] for _, near in found]
    asked = queries.columns.get("labels", [""] * count)
    for (path, _), label, here, (distances, _) in zip(queries.entries, asked, rows, found, strict=True):
        print(printable("  ".join(filter(None, (str(path), label)))))
        for rank, (distance, near, word) in enumerate(
            zip(distances[0], index.paths(here), index.labels(here), strict=False), start=1
        ):
            print(f"{rank:>5} {distance:>10.4f}  {printable('  '.join(filter(None, (str(near), word))))}")
    print(f"{embedding_ms:.1f} ms to embed and {search_ms:.2f} ms to search, a query ({count} of them)")
    _draw(index, model, queries, rows, picture)
    return [index.paths(here) for here in rows]


def _draw(index: Index, model: Trained, queries: Images, rows: Sequence[np.ndarray], picture: Path) -> None:
    """As the network saw them, cut to their boxes; framed by their classes where those are known."""
    gone: list[str] = []

    def image(path: Path, box: Box | None) -> Image.Image:
        try:
            return load_image(path, box, white=model.config["transform"].get("white"))
        except ValueError as error:
            gone.append(str(error))
            return Image.fromarray(np.full((8, 8), 224, dtype=np.uint8)).convert("RGB")

    labels = queries.columns.get("labels", [""] * len(queries.entries))
    lines = []
    for (path, box), label, here in zip(queries.entries[:_DRAWN], labels, rows, strict=False):
        near = here[:_COLUMNS].tolist()
        found = zip(index.paths(near), index.boxes(near), index.labels(near), strict=True)
        right = [(image(at, cut), word == label if word and label else None) for at, cut, word in found]
        lines.append(Example(image(path, box), "  ".join(filter(None, (str(path), label))), right))
    title = "Queries, left, and the nearest images"
    if any(right is not None for line in lines for _, right in line.found):
        title += "; green: the same class, red: another one"
    draw_neighbours([(f"{title} (the first {len(lines)} of {len(queries.entries)})", lines)], picture)
    if gone:
        print(printable(f"gray in the picture, {counted(len(gone), 'image')}: {gone[0]}"), file=sys.stderr)
    print(f"Picture: {picture}")
