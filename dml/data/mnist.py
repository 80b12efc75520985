"""MNIST (LeCun et al. 1998), downloaded by torchvision."""

from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

from dml.data.dataset import Records, Source


def load(
    *,
    root: str,
    test_images: Annotated[int, Interval(ge=1, le=10_000)] | None = 5000,
    split_seed: Annotated[int, Ge(0)] = 0,
) -> Source:
    """60,000 training images, and the test set of 10,000 or a part of it, which the paper's Fig. 4 draws.

    Args:
        root: folder that torchvision keeps MNIST in (ROOT/MNIST/raw); what is missing is downloaded.
        test_images: how many test images to keep, drawn at random; null keeps all.
        split_seed: of that draw.

    Raises:
        ValueError: MNIST is not there and cannot be downloaded, or test_images is out of range.
    """
    from torchvision.datasets import MNIST

    MNIST.mirrors = [mirror for mirror in MNIST.mirrors if mirror.startswith("https://")]  # one is not
    sets = []
    for train in (True, False):
        try:
            sets.append(MNIST(root, train=train, download=True))
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"MNIST is not in data.root={root} and could not be downloaded ({str(error).splitlines()[0]}). "
                f"Put its four .gz files into {Path(root) / 'MNIST' / 'raw'}, or use data=digits, which needs none"
            ) from error
    names = tuple(map(str, range(10)))
    train_records, test_records = (
        Records(part.data.numpy(), part.targets.numpy().astype(np.int64), names) for part in sets
    )
    if test_images is not None:
        if not 0 < test_images <= len(test_records):
            raise ValueError(f"data.test_images={test_images} is not possible: it must be 1 to {len(test_records)}")
        chosen = np.random.default_rng(split_seed).permutation(len(test_records))[:test_images]
        test_records = test_records.subset(np.sort(chosen))
    return Source("mnist", train_records, test_records, class_disjoint=False)
