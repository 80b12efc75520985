"""scikit-learn's 1,797 handwritten digits, 8 x 8 pixels: real images that need no download."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

from dml.data.dataset import Records, Source, stratified_split


def load(
    *, test_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.25, split_seed: Annotated[int, Ge(0)] = 0
) -> Source:
    """Ten classes, split at random with the same share of every class.

    Args:
        test_fraction: share of the images of each class that is the test set, in (0, 1).
        split_seed: of that draw; not the seed of a run, so that all runs share one test set.

    Raises:
        ValueError: test_fraction is not in (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"data.test_fraction={test_fraction} is not possible: it must lie between 0 and 1")
    # scikit-learn takes a second to import; only this data set needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 .. 16
    records = Records(pixels, digits.target.astype(np.int64), tuple(map(str, range(10))))
    train, test = stratified_split(records, test_fraction, split_seed)
    return Source("digits", train, test, class_disjoint=False)
