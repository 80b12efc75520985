"""Images -> a file of embeddings, in blocks: what was embedded is kept, whatever ends the command.

The images are cut into blocks of eight batches, in their order. A block is a file in the folder NAME.parts beside the
result, named after the model and the contents of the block; process r of W makes the blocks r, r + W, ... Whoever
finds all blocks there puts them together. So processes need not talk to each other, batches are the same with any
number of them, and the same command goes on where it was broken off, with more or fewer processes too.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dml.data.broken import why_broken
from dml.data.cache import COLUMNS, Entry, as_it_is, fingerprint
from dml.data.decode import Decode
from dml.engine.datamodule import cores
from dml.locks import lock
from dml.printable import printable
from dml.use.embeddings import About, Embeddings, write_embeddings
from dml.use.images import Images
from dml.use.trained import Trained
from dml.whole_file import whole_file, write_whole
from dml.words import counted

_BATCHES = 8  # of a block


@dataclass(frozen=True)
class Share:
    """This process of how many, of all machines, and which of its machine's."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    local_processes: int = 1


def share_of_environment() -> Share:
    """As torchrun or srun say; alone without them."""
    e = os.environ
    if "TORCHELASTIC_RUN_ID" in e:
        return Share(*(int(e[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if int(e.get("SLURM_NTASKS", 1)) > 1:
        local = e.get("SLURM_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]
        return Share(int(e["SLURM_PROCID"]), int(e["SLURM_NTASKS"]), int(e["SLURM_LOCALID"]), int(local))
    return Share()


class _Items(Dataset[tuple[Tensor | None, str]]):
    """Pixels of an image, or None and why it cannot be decoded."""

    def __init__(self, entries: Sequence[Entry], model: Trained) -> None:
        self.entries, self.transforms = entries, model.transforms

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        try:
            return self.transforms.test(self.transforms.decode(*self.entries[index])), ""
        except ValueError as error:
            return None, why_broken(error)


def embed(
    model: Trained,
    images: Images,
    out: Path,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    skip: bool = False,
    max_bad: int = 10,
    share: Share | None = None,
) -> Path | None:
    """Embed images into a file; what an earlier call of the same was broken off with is not done again.

    Args:
        model: on the device that is to do the work.
        images: N.
        out: .npz or .parquet.
        batch_size: images a batch.
        workers: processes that decode; None: the cores of this machine, shared by its processes.
        skip: leave images out that cannot be decoded, and list them in NAME.bad_images.txt; else they are an error.
        max_bad: more than that are an error.
        share: this process of several that were all called with the same; None: as the environment says.

    Returns:
        The file, whole; None where other processes are still at their blocks.

    Raises:
        ValueError: an image cannot be read, or `out` holds other embeddings; names it.
        OSError: a file cannot be written.
    """
    share = share or share_of_environment()
    entries = images.entries
    blocks = _blocks(model, entries, _BATCHES * batch_size)
    digest = hashlib.sha256("".join(key for key, _ in blocks).encode())
    for name, column in images.known.items():
        digest.update(f"{name} {column.dtype}".encode() + column.tobytes())
    source = digest.hexdigest()[:16]
    if out.exists():
        _same(out, model, source)
        print(f"Embedded already: {out}")
        return out
    folder = out.with_name(f"{out.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    mine = [block for block in blocks[share.rank :: share.processes] if not _file(folder, block).is_file()]
    if share.rank == 0 and any(_file(folder, block).is_file() for block in blocks):
        there = sum(_file(folder, block).is_file() for block in blocks)
        print(f"Going on: {there} of {counted(len(blocks), 'block')} are there", flush=True)
    if workers is None:
        workers = min(8, cores() // share.local_processes)
    begun = time.perf_counter()
    embedded = _embed_blocks(model, entries, mine, folder, batch_size, workers, max_bad if skip else None, share)
    seconds = time.perf_counter() - begun
    if embedded:
        print(f"Embedded {counted(embedded, 'image')} in {seconds:.1f} s ({embedded / seconds:.0f} a second)")
    # Another process may have put all together, and removed the folder, since this one made its last block.
    with suppress(FileNotFoundError), (folder / "lock").open("w") as file:
        lock(file)
        if not out.exists():
            if not all(_file(folder, block).is_file() for block in blocks):
                return None
            _put_together(model, images, blocks, folder, out, source, max_bad if skip else None)
    shutil.rmtree(folder, ignore_errors=True)
    return out


Block = tuple[str, range]  # fingerprint, indices of its images


def _blocks(model: Trained, entries: Sequence[Entry], size: int) -> list[Block]:
    blocks = []
    for start in range(0, len(entries), size):
        where = range(start, min(start + size, len(entries)))
        contents = fingerprint(entries[where.start : where.stop], Decode())
        blocks.append((hashlib.sha256(f"{model.fingerprint}{size}{contents}".encode()).hexdigest()[:16], where))
    return blocks


def _file(folder: Path, block: Block) -> Path:
    return folder / f"{block[1].start}-{block[0]}.npz"


def _same(out: Path, model: Trained, source: str) -> None:
    about = Embeddings(out).about
    if (about.model, about.source) != (model.fingerprint, source):
        raise ValueError(
            f"{out} is there already, of another model, other images or labels, or another batch size: give --out"
        )


def _embed_blocks(
    model: Trained,
    entries: Sequence[Entry],
    blocks: Sequence[Block],
    folder: Path,
    batch_size: int,
    workers: int,
    max_bad: int | None,
    share: Share,
) -> int:
    """Write the files of some blocks; returns the number of images that were embedded."""
    batches = [
        list(where[start : start + batch_size]) for _, where in blocks for start in range(0, len(where), batch_size)
    ]
    loader = DataLoader(
        _Items(entries, model),
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=as_it_is,
        generator=torch.Generator(),
    )
    done, bad = 0, dict[int, str]()
    batch = iter(loader)
    with Progress(*COLUMNS, disable=share.rank > 0) as bar:
        task = bar.add_task("Embedding", total=sum(map(len, batches)))
        for block in blocks:
            found = [np.empty((0, model.dim), dtype=np.float32)]
            reasons = dict[int, str]()
            for start in range(block[1].start, block[1].stop, batch_size):
                items = next(batch)
                reasons |= {start + i: reason for i, (_, reason) in enumerate(items) if reason}
                _refuse_broken(entries, bad | reasons, max_bad)
                if whole := [pixels for pixels, _ in items if pixels is not None]:
                    found.append(model(torch.stack(whole)).numpy(force=True))
                bar.advance(task, len(items))
            bad |= reasons
            embeddings = np.concatenate(found)
            if not np.isfinite(embeddings).all():
                raise ValueError(f"{model.path} gives embeddings that are NaN or infinite")
            with whole_file(_file(folder, block)) as file:
                np.savez(file, embeddings=embeddings, broken=np.array(json.dumps(reasons)))
            done += len(block[1])
    return done


def _refuse_broken(entries: Sequence[Entry], bad: dict[int, str], max_bad: int | None) -> None:
    if len(bad) <= (max_bad or 0):
        return
    first = "; ".join(f"{entries[i][0]}: {reason}" for i, reason in list(bad.items())[:3])
    if max_bad is None:
        raise ValueError(
            f"the image {printable(first)}. Mend or remove it, or leave it out by --skip-broken; what was embedded is "
            "kept, and the same command goes on"
        )
    raise ValueError(
        f"{counted(len(bad), 'image')} cannot be decoded, more than --max-bad {max_bad}; what was embedded is kept. "
        f"The first: {printable(first)}"
    )


def _put_together(
    model: Trained,
    images: Images,
    blocks: Sequence[Block],
    folder: Path,
    out: Path,
    source: str,
    max_bad: int | None,
) -> None:
    entries, bad = images.entries, dict[int, str]()
    for block in blocks:
        with np.load(_file(folder, block)) as file:
            bad |= {int(index): reason for index, reason in json.loads(file["broken"].item()).items()}
    _refuse_broken(entries, bad, max_bad)
    kept = [i for i in range(len(entries)) if i not in bad]
    if not kept:
        raise ValueError(f"none of {counted(len(entries), 'image')} can be decoded")

    def parts() -> Iterator[np.ndarray]:
        for block in blocks:
            with np.load(_file(folder, block)) as file:
                yield file["embeddings"]

    about = About(model.fingerprint, str(model.path.resolve()), model.dim, model.normalized, len(kept), source)
    if bad:
        listed = out.with_name(f"{out.stem}.bad_images.txt")
        lines = [f"{printable(str(entries[i][0]))}\t{printable(reason)}\n" for i, reason in bad.items()]
        write_whole(listed, "".join(lines).encode())
        print(f"{counted(len(bad), 'image')} cannot be decoded and left out: {listed}")
    known = {name: column[kept] for name, column in images.known.items()}
    write_embeddings(out, about, [entries[i][0] for i in kept], parts(), known)
    print(f"{counted(len(kept), 'embedding')} of {model.dim} dimensions: {out}")
