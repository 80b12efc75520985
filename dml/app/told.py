"""What a run says of its data at its start: a line for each part, and what was done otherwise than asked."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dml.data.dataset import Records, Source
from dml.printable import printable
from dml.words import counted

log = logging.getLogger(__name__)


@rank_zero_only
def tell(source: Source, validation: Records | None, *, tested_only: bool = False) -> None:
    """Log how the images were read, to the console and the run's log file; tested_only: nothing is trained."""
    for name, records in source.parts(validation).items():
        if not (tested_only and name in ("train", "validation")):
            log.info(printable(f"{'training' if name == 'train' else name}: {describe(records)}"))
    if source.passed_over:
        log.info(passed_over(source))
    for note in source.notes:
        log.warning(printable(note))
    if source.leak:
        log.warning(printable(f"{source.name}: {source.leak}. So no score of this run is a score on unseen classes"))


def passed_over(source: Source) -> str:
    """What was not read of a source that says so."""
    kinds = sorted(source.passed_over.items(), key=lambda item: -item[1])
    return printable(f"Passed over in {source.name}: {', '.join(f'{count} {kind}' for kind, count in kinds)}")


def describe(records: Records) -> str:
    """Images in a line: how many, of how many classes, how many for each, where from, how many were left out."""
    return ", ".join(_said(records))


def _said(records: Records) -> Iterator[str]:
    sizes = records.sizes
    smallest, largest = sizes["smallest_class"], sizes["largest_class"]
    each = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    yield f"{counted(sizes['images'], 'image')} of {counted(sizes['classes'], 'class')} ({each} for each class)"
    yield "in memory" if isinstance(records.images, np.ndarray) else f"from {_common_folder(records)}"
    if records.left_out:
        yield f"{records.left_out:,} left out (they cannot be decoded)"


def _common_folder(records: Records) -> Path:
    return Path(os.path.commonpath({os.path.dirname(os.path.abspath(image)) for image in records.images}))
