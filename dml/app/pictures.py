"""Pictures of a test, made when its result is written: two-dimensional embeddings, queries with their neighbours."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from torch.nn import functional as F

from dml.app.build import Built
from dml.data.dataset import Records
from dml.data.decode import load_image
from dml.printable import printable
from dml.report.figures import draw_embedding
from dml.report.neighbours import Example, draw_neighbours
from dml.retrieval.search import Search
from dml.whole_file import whole_file

log = logging.getLogger(__name__)

_SAMPLE = 1000  # queries that are looked at: enough to find bad ones, and no time on large data sets
_LINES, _NEIGHBOURS = 4, 8


def save_pictures(trainer: pl.Trainer, built: Built, metrics: dict[str, float], folder: Path) -> None:
    """Draw retrieval.png and, in two dimensions, embedding.png, and hand them to the loggers.

    What fails is told, and the result stands: whatever may fail in a plotting library or another logger, none of it is
    worth a result that has been measured.
    """

    def attempt(name: str, draw: Callable[[], Path]) -> None:
        doing = "was not drawn"
        try:
            picture = draw()
            doing = "was not handed to the logger"
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image(f"test/{picture.stem}", [str(picture)])
        except Exception as error:
            log.warning(printable(f"the result is written, but {name} {doing}: {error!r}"))

    assert built.model.test_embeddings is not None
    attempt("retrieval.png", lambda: draw_examples(built, folder / "retrieval.png"))
    if built.model.test_embeddings[0].shape[1] == 2:
        attempt("embedding.png", lambda: _embedding(built, metrics, folder))


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


def draw_examples(built: Built, path: Path) -> Path:
    """Draw the worst and some typical queries of a sample with their nearest neighbours (report/neighbours.py).

    A query's score is the mean precision at the right ones among its R nearest (its share of MAP@R), R being the number
    of right ones that there are, at most 8. Typical queries stand around the median.
    """
    assert built.model.test_embeddings is not None
    x, found_in = built.model.test_embeddings[0], built.source.test
    records, g, own = found_in, x, np.arange(len(x))
    if built.source.gallery is not None and built.model.test_gallery is not None:
        found_in, g, own_index = built.source.gallery, built.model.test_gallery, built.source.own_index
        assert own_index is not None  # as there is a gallery
        own = own_index
    if getattr(built.model.evaluator, "normalize", False):
        x, g = F.normalize(x, dim=1), F.normalize(g, dim=1)
    positives = np.bincount(found_in.labels, minlength=int(records.labels.max()) + 1)[records.labels] - (own >= 0)
    sample = np.random.default_rng(0).permutation(np.flatnonzero(positives > 0))[:_SAMPLE]
    k = min(_NEIGHBOURS, len(g) - bool((own >= 0).any()))
    near, _ = Search(g.numpy())(x.numpy()[sample], k, own[sample])
    hits = found_in.labels[near] == records.labels[sample, None]
    # Of equally bad ones those that come first in the sample, which is in random order.
    order = np.argsort(scores(hits, np.minimum(positives[sample], k)), kind="stable")
    middle = max(0, len(order) // 2 - _LINES // 2)

    def examples(places: Sequence[int]) -> list[Example]:
        return [
            Example(
                _image(records, sample[place]),
                records.class_names[records.labels[sample[place]]],
                [(_image(found_in, i), bool(hit)) for i, hit in zip(near[place], hits[place], strict=True)],
            )
            for place in places
        ]

    of = f"of {len(sample):,} test queries, left, and the nearest images; green: the same class, red: another one"
    lines = {f"The worst {of}": order[:_LINES], f"Typical ones {of}": order[middle : middle + _LINES]}
    return draw_neighbours([(title, examples(list(places))) for title, places in lines.items()], path)


def scores(hits: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Mean precision [q] at the hits [q, k] among the first r [q] of each query."""
    rank = np.arange(1, hits.shape[1] + 1)
    inside = hits & (rank <= r[:, None])
    return (inside * hits.cumsum(axis=1) / rank).sum(axis=1) / r


def _image(records: Records, index: int) -> Image.Image:
    return load_image(records.images[index])
