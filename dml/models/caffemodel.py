"""Weights in a file of Caffe, read without Caffe: a NetParameter in the wire format of protocol buffers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Numbers of fields in caffe.proto. A layer is of one of two kinds, by the age of the file.
_KINDS = {2: (4, 6), 100: (1, 7)}  # of the network: layers, layer -> of these: name, blobs
_OLD_SHAPE, _DATA, _SHAPE = (1, 2, 3, 4), 5, 7  # of a blob


def read_caffemodel(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .caffemodel: LAYER.weight and LAYER.bias, float32, in the shapes that the file says.

    Raises:
        ValueError: the file is no such message, or ends early.
    """
    found: dict[str, Tensor] = {}
    for field, layer in _fields(memoryview(Path(path).read_bytes())):
        if field not in _KINDS or isinstance(layer, int):
            continue
        of_name, of_blob = _KINDS[field]
        name, blobs = "", []
        for inner, value in _fields(layer):
            if inner == of_name and not isinstance(value, int):
                name = bytes(value).decode()
            elif inner == of_blob and not isinstance(value, int):
                blobs.append(_tensor(value))
        found |= {f"{name}.{leaf}": blob for leaf, blob in zip(("weight", "bias"), blobs, strict=False)}
    return found


def _tensor(blob: memoryview) -> Tensor:
    old, shape, data = {}, None, []
    for field, value in _fields(blob):
        if isinstance(value, int):
            old[field] = value
        elif field == _DATA:
            data.append(np.frombuffer(value, dtype="<f4"))
        elif field == _SHAPE:
            packed = [dims for inner, dims in _fields(value) if inner == 1]
            shape = [side for dims in packed for side in ([dims] if isinstance(dims, int) else _varints(dims))]
    sides = [old[field] for field in _OLD_SHAPE if field in old] if shape is None else shape
    return torch.from_numpy(np.concatenate(data).astype(np.float32)).reshape(sides)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the last of which is below 128; and where it ends."""
    number = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("the file ends in the middle of a number")
        byte = data[at]
        number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return number, at


def _varints(data: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = _varint(data, at)
        numbers.append(number)
    return numbers


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: a number, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind not in (1, 2, 5):
            raise ValueError("it is no file of Caffe")
        length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + length > len(data):
            raise ValueError("the file ends early")
        yield key >> 3, data[at : at + length]
        at += length
