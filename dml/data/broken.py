"""Images that cannot be decoded: found before anything depends on them, and left out of the records."""

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from dml.data.cache import COLUMNS, alone, as_it_is, fingerprint
from dml.data.dataset import Records, Source
from dml.data.decode import Decode, load_image
from dml.data.own_folders import make_tagged
from dml.whole_file import write_whole
from dml.words import counted


def leave_out(source: Source, validation: Records | None, broken: Mapping[Path, str]) -> tuple[Source, Records | None]:
    """The source and its validation part without the broken images; all others stay in the part that they are in.

    A training or validation class that no image is left of is dropped, and labels are renumbered. Those of queries and
    gallery are not: equal labels are equal classes.

    Raises:
        ValueError: no image is left of a part.
    """

    def rest(part: str, records: Records) -> Records:
        kept = np.array([image not in broken for image in records.images], dtype=bool)
        if len(kept) and not kept.any():  # nothing trains where all is to be tested
            raise ValueError(f"data.on_error=skip leaves no image of the {part} part: all {len(kept)} are broken")
        left = records.subset(np.flatnonzero(kept))
        if part in ("training", "validation"):
            return replace(left, left_out=int((~kept).sum()))
        return replace(left, left_out=int((~kept).sum()), labels=records.labels[kept], class_names=records.class_names)

    left = replace(
        source,
        train=rest("training", source.train),
        test=rest("test", source.test),
        gallery=source.gallery and rest("gallery", source.gallery),
    )
    return left, validation and rest("validation", validation)


def find_broken(
    parts: Sequence[Records], *, folder: str, name: str, workers: int, progress: bool, white: float | None = None
) -> dict[Path, str]:
    """Decode every image once, at full size; images in memory are whole.

    What was found is remembered in a file that is found again by the images' paths, sizes and modification times, in
    whichever of the parts they are: only the first of many runs decodes. Of several processes one does.

    Args:
        parts: all of a source.
        folder: where it is remembered (data.cache_dir).
        name: of the source, for the file's name.
        workers: processes that decode.
        progress: show a bar.
        white: of the transform, without which some images of more than 8 bits cannot be read.

    Returns:
        The images that cannot be decoded, in order, each with its reason.

    Raises:
        ValueError: the system cannot read an image (it is gone, its disk fails), which says nothing of the image, or
            the folder cannot be written.
    """
    images = sorted({image for part in parts for image in part.images if isinstance(image, Path)})
    if not images:
        return {}
    where = Path(folder).expanduser()
    file = where / f"{name[:50]}-{fingerprint([(image, None) for image in images], Decode(white=white))}.broken"
    try:
        if not file.exists():
            make_tagged(where)
            with alone(where):
                if not file.exists():
                    found = _try_all(images, white, workers, progress)
                    text = json.dumps({str(image): reason for image, reason in found.items()}, indent=2)
                    write_whole(file, text.encode())
        return {Path(image): reason for image, reason in json.loads(file.read_text()).items()}
    except OSError as error:
        raise ValueError(f"data.cache_dir={folder}: {file} cannot be read or written ({error})") from error


def why_broken(error: ValueError) -> str:
    """Why an image cannot be decoded, of the error of `load_image`.

    Raises:
        ValueError: that error again, where it says nothing of the image: the system cannot read it.
    """
    cause = error.__cause__
    # Pillow itself seeks to where a broken file says, which the system calls an invalid argument.
    if isinstance(cause, MemoryError) or getattr(cause, "errno", None) not in (None, errno.EINVAL):
        raise error
    return str(cause) or type(cause).__name__


class _Reasons(Dataset[str]):
    """Why an image cannot be decoded; empty if it can."""

    def __init__(self, images: Sequence[Path], white: float | None) -> None:
        self.images, self.white = images, white

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        try:
            load_image(self.images[index], white=self.white)
        except ValueError as error:
            return why_broken(error)
        return ""


def _try_all(images: Sequence[Path], white: float | None, workers: int, progress: bool) -> dict[Path, str]:
    print(f"Checking {counted(len(images), 'image')} once, as data.on_error=skip needs it", flush=True)
    # As for the cache: processes, and a generator of its own.
    loader = DataLoader(
        _Reasons(images, white), batch_size=None, num_workers=workers, collate_fn=as_it_is, generator=torch.Generator()
    )
    found = {}
    with Progress(*COLUMNS, disable=not progress) as bar:
        task = bar.add_task("Checking images", total=len(images))
        for image, reason in zip(images, loader, strict=True):
            if reason:
                found[image] = reason
            bar.advance(task)
    return found
