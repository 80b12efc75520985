"""A run as files that need no dml, each held against the run's own network on the test set."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress
from torch import Tensor

from dml.app.build import read_parts
from dml.data.cache import COLUMNS
from dml.data.dataset import ImageDataset, Records, Source
from dml.retrieval.apart import parts_of, take
from dml.retrieval.evaluator import normalized
from dml.retrieval.metrics import recall_at_k
from dml.retrieval.ranks import positive_ranks
from dml.retrieval.rows import Ranks
from dml.use.data import source_of_settings
from dml.use.formats import Embed, Written, write_formats
from dml.use.trained import Trained
from dml.whole_file import whole_folder, write_whole

_CALIBRATION, _BATCH = 256, 32  # training images that int8 chooses its scales by; images of a batch
_CLOSE = 1e-3  # largest difference, as a share of the longest embedding, of a file that computes in float32


def export(
    model: Trained, formats: Sequence[str], out: Path, data: dict[str, Any], images: int | None = None
) -> dict[str, Any]:
    """Write the formats into a folder, with what each is worth in export.json.

    Args:
        model: on the CPU.
        formats: of formats.FORMATS.
        out: the folder.
        data: settings of the data, as of a command line: others than the run's, or data=NAME for other images.
        images: compare by about so many images, of classes that are drawn at random; None: by all of the test part.

    Returns:
        What export.json holds.

    Raises:
        ValueError: the test set cannot be read, a package is missing, or a file does not give the run's embeddings;
            nothing is left then.
        OSError: `out` is there, or cannot be written.
    """
    with whole_folder(out) as folder:
        source = source_of(model, data)
        if "int8" in formats and not len(source.train):
            raise ValueError(
                "int8 takes its scales from training images, and these data have none: give data.train_fraction=0.5, "
                "or leave int8 out by --only"
            )
        total = sum(map(len, _tested(source)))
        source = source if images is None else _some_classes(source, images)
        written = list(write_formats(model, formats, folder, lambda: _calibration(model, source.train)))
        report = compare(model, source, written)
        report["test"]["of"] = total
        for file in report["files"]:
            file["megabytes"] = round((folder / file["file"]).stat().st_size / 1e6, 2)
        write_whole(folder / "export.json", (json.dumps(report, indent=2) + "\n").encode())
    return report


def source_of(model: Trained, data: dict[str, Any]) -> Source:
    """What the run was trained and tested on, read again.

    Raises:
        ValueError: it cannot be read.
    """
    if "data" in data:  # other images than the run's
        return source_of_settings(model, data)
    keys = {key.removeprefix("data."): value for key, value in data.items()}
    config = {**model.config, "progress_bar": False, "data": {**model.config["data"], **keys}}
    cfg = OmegaConf.create(config)
    assert isinstance(cfg, DictConfig)
    try:
        return read_parts(cfg)[0]
    except ValueError as error:
        raise ValueError(
            f"the run's data, by which an export is verified, cannot be read: {error}. data.root=DIR says where it is; "
            "data=folder data.root=DIR verifies by other images"
        ) from error


def _tested(source: Source) -> list[Records]:
    return [part for part in (source.test, source.gallery) if part is not None]


def _some_classes(source: Source, images: int) -> Source:
    """Whole classes of the test part, as many as it takes to have so many images; two at least."""
    most = max(part.num_classes for part in _tested(source))
    sizes = np.sum([np.bincount(part.labels, minlength=most) for part in _tested(source)], axis=0)
    asked = np.random.default_rng(0).permutation(np.unique(source.test.labels))
    classes = asked[: max(2, 1 + int(np.searchsorted(np.cumsum(sizes[asked]), images)))]

    def some(records: Records) -> Records:
        kept = np.flatnonzero(np.isin(records.labels, classes))
        named = {key: getattr(records, key) for key in ("labels", "boxes", "groups")}
        chosen = {key: values[kept] for key, values in named.items() if values is not None}
        images = records.images
        some = images[kept] if isinstance(images, np.ndarray) else [images[i] for i in kept.tolist()]
        return replace(records, images=some, **chosen)

    return replace(source, test=some(source.test), gallery=None if source.gallery is None else some(source.gallery))


def _batches(model: Trained, records: Records, rows: Sequence[int]) -> Iterator[Tensor]:
    """Images of some rows as the run tests them, uint8 [b, 3, H, W] or [b, crops, 3, H, W]."""
    transforms = model.transforms
    cut = transforms.crop_to_box and records.boxes is not None
    images = ImageDataset(records, transforms.test, decode=transforms.decode, crop_to_box=cut)
    for start in range(0, len(rows), _BATCH):
        yield torch.stack([images[row][0] for row in rows[start : start + _BATCH]]).contiguous()


def _calibration(model: Trained, train: Records) -> Iterator[np.ndarray]:
    rows = np.random.default_rng(0).permutation(len(train))[:_CALIBRATION].tolist()
    for images in _batches(model, train, rows):
        yield images.flatten(0, -4).numpy()


@torch.inference_mode()
def compare(model: Trained, source: Source, written: Sequence[Written]) -> dict[str, Any]:
    """Embed the test set by the run's network and by each file, and compare the ranks of all positives.

    Raises:
        ValueError: a file that computes in float32 gives other embeddings.
    """
    ways: list[Embed] = [model.learner, *(file.embed for file in written)]
    parts = _tested(source)
    seconds = np.zeros(len(ways))
    sides: list[list[Tensor]] = []  # of each part, the embeddings of each way
    with Progress(*COLUMNS) as bar:
        task = bar.add_task("Comparing", total=sum(map(len, parts)))
        for part in parts:
            found: list[list[Tensor]] = [[] for _ in ways]
            for images in _batches(model, part, range(len(part))):
                flat = images.flatten(0, -4)
                if not seconds.any():  # the first call of each prepares what later ones use
                    _ = [embed(flat[:1]) for embed in ways]
                for i, embed in enumerate(ways):
                    begun = time.perf_counter()
                    embeddings = embed(flat).float()
                    seconds[i] += time.perf_counter() - begun
                    found[i].append(embeddings.reshape(len(images), -1, embeddings.shape[1]).mean(dim=1))
                bar.advance(task, len(images))
            sides.append([torch.cat(one) for one in found])
    if model.normalized:
        sides = [[normalized(one) for one in side] for side in sides]
    ranks = [_ranks(source, *(side[i] for side in sides)) for i in range(len(ways))]
    count = sum(map(len, parts))
    milliseconds = [round(1000 * float(one) / count, 3) for one in seconds]
    files = []
    for i, file in enumerate(written, start=1):
        difference = max(float((side[i] - side[0]).abs().max()) for side in sides)
        if file.exact and not difference <= _CLOSE * max(float(side[0].norm(dim=1).max()) for side in sides):
            raise ValueError(
                f"{file.file} gives other embeddings than the run, by up to {difference:.2g}: not exported"
            )
        files.append(
            {
                "file": file.file,
                "largest_difference": difference,
                "ranks_that_differ": int((ranks[i].ranks != ranks[0].ranks).sum()),
                "recall@1": recall_at_k(ranks[i], 1),
                "milliseconds_per_image": milliseconds[i],
            }
        )
    return {
        "model": model.fingerprint,
        "checkpoint": model.path.name,
        "test": {"data": source.name, "images": count, "ranks": len(ranks[0].ranks)},
        "run": {"recall@1": recall_at_k(ranks[0], 1), "milliseconds_per_image": milliseconds[0]},
        "files": files,
    }


def _ranks(source: Source, queries: Tensor, gallery: Tensor | None = None) -> Ranks:
    labels, own, test = None if source.gallery is None else source.gallery.labels, source.own_index, source.test
    if test.groups is None:
        return positive_ranks(queries, test.labels, gallery, labels, own)
    pool, among = (queries, test) if gallery is None or source.gallery is None else (gallery, source.gallery)
    found = []
    for part in parts_of(test.groups, among.groups, len(queries), len(pool), own):
        there, classes = take(pool, part.rest), take(among.labels, part.rest)
        asked = take(queries, part.queries), take(test.labels, part.queries)
        found.append(positive_ranks(*asked, there, classes, part.own))
    return Ranks(*(np.concatenate([getattr(one, name) for one in found]) for name in ("ranks", "counts")))


def table(report: dict[str, Any]) -> str:
    """export.json in lines."""
    test, run = report["test"], report["run"]
    lines = [f"{'file':<20} {'MB':>8} {'ranks that differ':>20} {'recall@1':>9} {'change':>8} {'ms/image':>9}"]
    lines.append(f"{'the run':<20} {'':>8} {'':>20} {run['recall@1']:>9.4f} {'':>8} {run['milliseconds_per_image']:>9}")
    for file in report["files"]:
        change = file["recall@1"] - run["recall@1"]
        of = f"{file['ranks_that_differ']:,} of {test['ranks']:,}"
        lines.append(
            f"{file['file']:<20} {file['megabytes']:>8} {of:>20} {file['recall@1']:>9.4f} {change:>+8.4f} "
            f"{file['milliseconds_per_image']:>9}"
        )
    some = f" of {test['of']:,}, of classes drawn at random" if test["of"] > test["images"] else ""
    return "\n".join(
        [*lines, f"Ranks of all positives in the test of {test['data']}, {test['images']:,} images{some}."]
    )
