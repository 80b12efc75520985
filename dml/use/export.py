"""A run as files that need no dml, each held against the run's own network on the test set."""

import json
import time
from collections.abc import Iterator, Sequence
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
from dml.retrieval.evaluator import normalized
from dml.retrieval.metrics import recall_at_k
from dml.retrieval.ranks import positive_ranks
from dml.use.formats import Embed, Written, write_formats
from dml.use.trained import Trained
from dml.whole_file import whole_folder, write_whole

_CALIBRATION, _BATCH = 256, 32  # training images that int8 chooses its scales by; images of a batch
_CLOSE = 1e-3  # largest difference, as a share of the longest embedding, of a file that computes in float32


def export(model: Trained, formats: Sequence[str], out: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Write the formats into a folder, with what each is worth in export.json.

    Args:
        model: on the CPU.
        formats: of formats.FORMATS.
        out: the folder.
        data: keys of the run's data group that are others now, as root.

    Returns:
        What export.json holds.

    Raises:
        ValueError: the test set cannot be read, a package is missing, or a file does not give the run's embeddings;
            nothing is left then.
        OSError: `out` is there, or cannot be written.
    """
    with whole_folder(out) as folder:
        source = source_of(model, data)
        written = list(write_formats(model, formats, folder, lambda: _calibration(model, source.train)))
        report = compare(model, source, written)
        for file in report["files"]:
            file["megabytes"] = round((folder / file["file"]).stat().st_size / 1e6, 2)
        write_whole(folder / "export.json", (json.dumps(report, indent=2) + "\n").encode())
    return report


def source_of(model: Trained, data: dict[str, Any]) -> Source:
    """What the run was trained and tested on, read again.

    Raises:
        ValueError: it cannot be read.
    """
    config = {**model.config, "progress_bar": False, "data": {**model.config["data"], **data}}
    cfg = OmegaConf.create(config)
    assert isinstance(cfg, DictConfig)
    try:
        return read_parts(cfg)[0]
    except ValueError as error:
        raise ValueError(
            f"the run's data, by which an export is verified, cannot be read: {error}. data.root=DIR says where it is"
        ) from error


def _batches(model: Trained, records: Records, rows: Sequence[int]) -> Iterator[Tensor]:
    """Images of some rows as the run tests them, uint8 [b, 3, H, W] or [b, crops, 3, H, W]."""
    transforms = model.transforms
    images = ImageDataset(records, transforms.test, decode=transforms.decode, crop_to_box=transforms.crop_to_box)
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
    parts = [part for part in (source.test, source.gallery) if part is not None]
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


def _ranks(source: Source, queries: Tensor, gallery: Tensor | None = None) -> Any:
    labels = None if source.gallery is None else source.gallery.labels
    return positive_ranks(queries, source.test.labels, gallery, labels, source.own_index)


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
    return "\n".join([*lines, f"Ranks of all positives in the test of {test['data']}, {test['images']:,} images."])
