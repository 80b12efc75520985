"""Labels of any kind -> whole numbers that are equal where the labels are."""

from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

_WANTED = "evaluation takes labels [N], one for each of the embeddings"


def class_numbers(*sides: Any) -> list[np.ndarray]:
    """Labels of each side, an array, tensor or sequence [n] -> int64 [n]; equal numbers are equal labels, on any side.

    Whole numbers are compared exactly, whatever their types (int64 and uint64 have no common one), words by character.

    Raises:
        ValueError: labels of a side are not one-dimensional, or neither whole numbers nor words, or words on one side
            and numbers on the other.
    """
    arrays = [_array(side) for side in sides]
    kinds = {"words" if array.dtype.kind in "US" else "whole numbers" for array in arrays if len(array)}
    if len(kinds) > 1:
        raise ValueError("the labels of one side are words, those of the other whole numbers: none can be equal")
    if not kinds & {"words"} and np.result_type(*arrays).kind == "f":  # int64 beside uint64: as Python's numbers
        arrays = [array.astype(object) for array in arrays]
    _, numbers = np.unique(np.concatenate(arrays), return_inverse=True)
    return np.split(numbers.astype(np.int64), np.cumsum([len(array) for array in arrays])[:-1])


def _array(labels: Any) -> np.ndarray:
    try:
        array = np.asarray(labels.tolist() if isinstance(labels, Tensor) else labels)
    except ValueError:  # numpy's way to say that a list of lists is no table
        raise ValueError(f"{_WANTED}, not lists of several lengths") from None
    if array.ndim != 1:
        raise ValueError(f"{_WANTED}, not {list(array.shape)}")
    if array.dtype.kind == "T":  # numpy's strings of any length
        array = np.array(array.tolist())
    if array.dtype.kind == "O":  # of pandas, for instance
        strange = [label for label in array if not isinstance(label, str | Integral | np.bool_)]
        words = sum(isinstance(label, str) for label in array)
        if strange or 0 < words < len(array):
            what = repr(strange[0]) if strange else "words among numbers"
            raise ValueError(f"evaluation takes labels that are whole numbers or words, not {what}")
        # Python's own numbers are of any size.
        array = array.astype(str) if words else np.array([int(label) for label in array], dtype=object)
    if array.dtype.kind not in "biuOUS":
        raise ValueError(f"evaluation takes labels that are whole numbers or words, not {array.dtype}")
    return array
