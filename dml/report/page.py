"""report.html of a run: one file without network, drawn from what the test has found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dml.printable import printable
from dml.report.findings import Looked, Pair, confused, recall_by_class, suspicious
from dml.report.lines import panels
from dml.report.maps import pca, umap
from dml.report.tables import further
from dml.report.thumbnails import Thumbnails
from dml.words import counted

_QUERIES, _CONFUSED, _PAIRS, _CLASSES = 8, 12, 12, 2000  # what a section shows at most
_POINTS, _PICTURED, _SIDE, _COLUMNS = 4000, 1000, 40, 32  # of the map: points, those with a picture, its pixels
# What decides a result first of all; the whole row is on the page too.
_FIRST = (
    *("method", "data", "backbone", "weights", "dimension", "batch", "optimizer.lr", "protocol.name", "seed", "steps"),
    *("evaluated_step", "test", "class_disjoint", "leaked", "leak", "code"),
)
# An image: of the queries, or of the gallery where there is one.
Key = tuple[bool, int]


@dataclass(frozen=True)
class Tested:
    """What a run's page shows.

    Attributes:
        title: of the page.
        metrics, row: as metrics.json has them.
        curves: name -> [[step, value], ...], of the whole run; none of an evaluation.
        looked: a sample of the queries with their neighbours.
        embeddings: [Q, D] of the queries, as they were searched.
        first_rank: [Q] where the nearest right image of each query stands (-1: it has none); None: it is not known, and
            the sample has to do.
        picture: gives an image, (whether it is of a gallery that is not the queries, its index), with its longer side
            at most so many pixels.
    """

    title: str
    metrics: Mapping[str, float]
    row: Mapping[str, Any]
    looked: Looked
    embeddings: np.ndarray
    first_rank: np.ndarray | None
    picture: Callable[[Key, int], Image.Image]
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)


def render(tested: Tested) -> str:
    """The page. In the order of its sections, pictures are put in until they are 6 MB; what was left out is said."""
    looked = tested.looked
    gallery = looked.found_labels is not looked.labels
    thumbnails = Thumbnails(tested.picture)
    shown = [
        (title, note, [_query(looked, gallery, int(place)) for place in places])
        for (title, note), places in zip(_TITLES, looked.worst_and_typical(_QUERIES), strict=True)
    ]
    mixed = confused(looked, _CONFUSED)
    doubtful, twice = suspicious(looked, _PAIRS)
    thumbnails.read(
        [key for *_, lines in shown for line in lines for key, *_ in [line["query"], *line["found"]]]
        + [key for one in mixed for key in ((False, one.query), (gallery, one.image))]
        + [key for pair in (*doubtful, *twice) for key in ((False, pair.query), (gallery, pair.image))]
    )
    context = {
        "title": printable(tested.title),
        "metrics": [(name, f"{value:.4f}") for name, value in tested.metrics.items() if name.count("/") < 2],
        "further": _further(tested.metrics),
        "first": [(key, value) for key in _FIRST if (value := _get(tested.row, key)) not in (None, "", [])],
        "row": [(key, _text(value)) for key, value in _flat(tested.row)],
        "panels": panels(tested.curves, tested.row.get("evaluated_step")),
        "sample": counted(len(looked.sample), "test query").replace("querys", "queries"),
        "grouped": looked.grouped,
        "queries": shown,
        "confused": [
            {
                "names": (_name(looked, one.queries), _name(looked, one.found)),
                "times": one.times,
                "of": one.of,
                "keys": ((False, one.query), (gallery, one.image)),
            }
            for one in mixed
        ],
        "doubtful": [_pair(looked, gallery, pair) for pair in doubtful],
        "twice": [_pair(looked, gallery, pair) for pair in twice],
        "classes": _classes(tested),
        "thumbnail": thumbnails,
        "map": _map(tested, thumbnails),  # last of all, as its pictures are many
        "thumbnails": thumbnails,
    }
    return environment().get_template("run.html").render(context)


_TITLES = (
    ("The worst queries", "those with the lowest average precision among their nearest images"),
    ("Typical queries", "around the median"),
)


@cache
def environment() -> Any:
    """The templates beside this file. Whatever is put into them is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _further(metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of further searches."""
    names, found = further(metrics)
    lines = [[search, *(f"{v[n]:.4f}" if n in v else "-" for n in names)] for search, v in found.items()]
    return ["search", *names], lines


def _query(looked: Looked, gallery: bool, place: int) -> dict[str, Any]:
    query = int(looked.sample[place])
    found = zip(looked.near[place], looked.hits[place], looked.distance[place], strict=True)
    return {
        "query": ((False, query), _name(looked, looked.labels[query]), query),
        "found": [
            ((gallery, int(i)), _name(looked, looked.found_labels[i]), bool(hit), f"{distance:.3g}")
            for i, hit, distance in found
        ],
    }


def _pair(looked: Looked, gallery: bool, pair: Pair) -> dict[str, Any]:
    labels = looked.labels[pair.query], looked.found_labels[pair.image]
    return {
        "names": tuple(_name(looked, label) for label in labels),
        "keys": ((False, pair.query), (gallery, pair.image)),
        "closeness": f"{pair.closeness:.2f}",
        "agreeing": pair.agreeing,
        "of": pair.of,
    }


def _classes(tested: Tested) -> dict[str, Any]:
    """Recall@1 by class for the table, and its distribution: how many classes in each tenth."""
    looked = tested.looked
    if tested.first_rank is not None:
        labels, rank = looked.labels, tested.first_rank
    else:
        labels, rank = looked.labels[looked.sample], np.where(looked.hits[:, 0], 0, 1)
    found = recall_by_class(labels, rank)
    tenths = np.bincount([min(9, int(10 * recall)) for _, recall, _ in found], minlength=10)
    return {
        "all": len(found),
        "every": tested.first_rank is not None,
        "rows": [[_name(looked, c), round(100 * recall, 1), size] for c, recall, size in found[:_CLASSES]],
        "tenths": [(f"{10 * i} to {10 * i + 10} %", int(n), float(n / tenths.max())) for i, n in enumerate(tenths)],
    }


def _map(tested: Tested, thumbnails: Thumbnails) -> dict[str, Any]:
    looked, total = tested.looked, len(tested.embeddings)
    chosen = np.random.default_rng(0).permutation(total)[:_POINTS]
    x = tested.embeddings[chosen]
    plane, share = pca(x)
    maps = [("The embeddings" if x.shape[1] == 2 else f"PCA ({100 * share:.0f} % of the variance)", plane)]
    second, why = umap(x)
    if second is not None:
        maps.append(("UMAP", second))
    sheet, pictured = thumbnails.sheet([(False, int(i)) for i in chosen[:_PICTURED]], _SIDE, _COLUMNS)
    labels = looked.labels[chosen]
    used, classes = np.unique(labels, return_inverse=True)
    return {
        "note": why,
        "total": total,
        "points": len(chosen),
        "pictured": pictured,
        "sheet": sheet,
        "side": _SIDE,
        "columns": _COLUMNS,
        "data": {
            "maps": [{"title": title, "points": _whole(points)} for title, points in maps],
            "classes": classes.tolist(),
            "names": [_name(looked, c) for c in used],
        },
    }


def _whole(plane: np.ndarray) -> list[list[int]]:
    """Points [n, 2] in whole numbers up to 2000, both axes by one scale."""
    low = plane.min(axis=0)
    scale = 2000 / max(float((plane.max(axis=0) - low).max()), 1e-300)
    return np.rint((plane - low) * scale).astype(int).tolist()


def _name(looked: Looked, label: int) -> str:
    name = printable(looked.names[label])
    return name if len(name) <= 60 else f"{name[:59]}…"


def _get(row: Mapping[str, Any], key: str) -> Any:
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if value is None else _text(value)


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))
