"""What a test leaves beside its result: pictures, a page, and what each query found."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dml.app.build import Built
from dml.data.dataset import Records
from dml.data.decode import load_image
from dml.printable import printable
from dml.report.figures import draw_embedding
from dml.report.findings import Looked
from dml.report.neighbours import Example, draw_neighbours
from dml.report.page import Key, Tested, render
from dml.retrieval.apart import Part, parts_of, take
from dml.retrieval.ranks import positive_counts
from dml.retrieval.search import Search
from dml.whole_file import whole_file, write_whole

log = logging.getLogger(__name__)

_PRODUCTS = 5e10  # multiplications that looking at queries may take, some seconds; and so how many are looked at
_LINES, _NEIGHBOURS = 4, 8


def save_pictures(
    trainer: pl.Trainer,
    built: Built,
    metrics: dict[str, float],
    row: Mapping[str, Any],
    folder: Path,
    curves: Mapping[str, list[list[float]]] | None = None,
) -> None:
    """Write per_query.npz, retrieval.png, report.html, in two dimensions embedding.png, and hand them to the loggers.

    The curves are those of the whole run; None: of an evaluation, which has none.

    What fails is told, and the result stands: whatever may fail in a plotting library or another logger, none of it is
    worth a result that has been measured.
    """

    def attempt(name: str, draw: Callable[[], Path | None]) -> None:
        doing = "was not drawn"
        try:
            file = draw()
            doing = "was not handed to the logger"
            hand = {".png": "log_image", ".html": "log_page"}.get("" if file is None else file.suffix, "")
            for logger in trainer.loggers:
                if file is not None and hasattr(logger, hand):
                    getattr(logger, hand)(f"test/{file.stem}", [str(file)])
        except Exception as error:
            log.warning(printable(f"the result is written, but {name} {doing}: {error!r}"))

    def looked() -> Looked:
        if not found:
            found.append(look(built))
        return found[0]

    found: list[Looked] = []
    assert built.model.test_embeddings is not None
    attempt("per_query.npz", lambda: _per_query(built, folder / "per_query.npz"))
    attempt("retrieval.png", lambda: draw_examples(built, looked(), folder / "retrieval.png"))
    attempt("report.html", lambda: _page(built, looked(), metrics, row, curves or {}, folder / "report.html"))
    if built.model.test_embeddings[0].shape[1] == 2:
        attempt("embedding.png", lambda: _embedding(built, metrics, folder))


def _per_query(built: Built, path: Path) -> Path | None:
    """What the metrics are means of, and each query's class: what `python -m dml.report --against` compares."""
    if not built.model.test_per_query:  # an evaluator of one's own does not say it
        return None
    with whole_file(path) as file:
        labels = built.source.test.labels.astype(np.int32)
        np.savez_compressed(file, labels=labels, **built.model.test_per_query)  # type: ignore[arg-type]
    return path


def _page(
    built: Built,
    looked: Looked,
    metrics: Mapping[str, float],
    row: Mapping[str, Any],
    curves: Mapping[str, list[list[float]]],
    path: Path,
) -> Path:
    assert built.model.test_embeddings is not None
    gallery = built.source.gallery

    def picture(key: Key, side: int) -> Image.Image:
        in_gallery, index = key
        records = gallery if in_gallery and gallery is not None else built.source.test
        return _image(built, records, index, side)

    title = f"{row['method']} on {row['data']}, seed {row['seed']}"
    if "joined" in row:
        title = f"{len(row['joined'])} models side by side on {row['data']}"
    tested = Tested(
        title=title,
        metrics=metrics,
        row=row,
        looked=looked,
        embeddings=_searched(built, built.model.test_embeddings[0]).numpy(),
        first_rank=built.model.test_per_query.get("first_rank"),
        picture=picture,
        curves=curves,
    )
    write_whole(path, render(tested).encode())
    return path


def _embedding(built: Built, metrics: dict[str, float], folder: Path) -> Path:
    assert built.model.test_embeddings is not None
    embeddings, labels = built.model.test_embeddings
    with whole_file(folder / "test_embeddings.npz") as file:
        np.savez_compressed(
            file,
            embeddings=embeddings.numpy(),
            labels=labels.numpy(),
            class_names=np.array(built.source.test.class_names),
        )
    return draw_embedding(folder, metrics.get("test/map"))


def look(built: Built) -> Looked:
    """Search the nearest images of some queries that have something to find: all of them, as far as seconds allow.

    They are searched in what the metrics are: without themselves, and without the images of their group.
    """
    assert built.model.test_embeddings is not None
    x, found_in = _searched(built, built.model.test_embeddings[0]), built.source.test
    records, g, own = found_in, x, np.arange(len(x))
    if built.source.gallery is not None and built.model.test_gallery is not None:
        found_in, own_index = built.source.gallery, built.source.own_index
        g = _searched(built, built.model.test_gallery)
        assert own_index is not None  # as there is a gallery
        own = own_index
    grouped = records.groups is not None
    parts = [Part(None, None, own)]
    if grouped:
        parts = parts_of(records.groups, found_in.groups, len(x), len(g), own)
    each = np.arange(len(x))
    own_there, positives = np.full(len(x), -1), np.zeros(len(x), dtype=np.int64)
    k = _NEIGHBOURS
    for part in parts:
        mine, labels = take(each, part.queries), take(found_in.labels, part.rest)
        own_there[mine] = -1 if part.own is None else part.own
        positives[mine] = positive_counts(records.labels[mine], labels, own_there[mine])
        k = min(k, len(labels) - bool((own_there[mine] >= 0).any()))
    most = max(1000, int(_PRODUCTS / g.numel()))
    sample = np.random.default_rng(0).permutation(np.flatnonzero(positives > 0))[:most]
    near, distance = np.zeros((len(sample), k), dtype=np.int64), np.zeros((len(sample), k))
    for part in parts:
        place = np.flatnonzero(np.isin(sample, take(each, part.queries)))
        if len(place):
            search = Search(take(g, part.rest).numpy())
            found, distance[place] = search(x.numpy()[sample[place]], k, own_there[sample[place]])
            near[place] = found if part.rest is None else part.rest[found]
    names = records.class_names
    return Looked(sample, near, distance, records.labels, found_in.labels, names, own, positives, grouped)


def _searched(built: Built, embeddings: Tensor) -> Tensor:
    """Embeddings as the evaluator compares them."""
    return F.normalize(embeddings, dim=1) if getattr(built.model.evaluator, "normalize", False) else embeddings


def draw_examples(built: Built, looked: Looked, path: Path) -> Path:
    """Draw the worst and some typical queries with their nearest neighbours (report/neighbours.py)."""
    records = built.source.test
    found_in = records if looked.found_labels is looked.labels else built.source.gallery
    assert found_in is not None

    def examples(places: Sequence[int]) -> list[Example]:
        return [
            Example(
                _image(built, records, query := int(looked.sample[place])),
                records.class_names[records.labels[query]],
                [
                    (_image(built, found_in, int(i)), bool(hit))
                    for i, hit in zip(looked.near[place], looked.hits[place], strict=True)
                ],
            )
            for place in places
        ]

    worst, typical = looked.worst_and_typical(_LINES)
    of = (
        f"of {len(looked.sample):,} test queries, left, and the nearest images{' of other groups' * looked.grouped}; "
        "green: the same class, red: another one"
    )
    lines = {f"The worst {of}": worst, f"Typical ones {of}": typical}
    return draw_neighbours([(title, examples(list(places))) for title, places in lines.items()], path)


def _image(built: Built, records: Records, index: int, side: int | None = None) -> Image.Image:
    """An image cut to its box if the network saw it so, else as the file has it; the longer side `side` at most."""

    def fitted(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, (side or max(width, height)) / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    transform = built.model.config["transform"]
    box = records.boxes[index].tolist() if transform.get("crop_to_box") and records.boxes is not None else None
    size = None if side is None else fitted
    return load_image(records.images[index], box, resized=size, white=transform.get("white"))
