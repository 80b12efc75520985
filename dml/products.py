"""Matrix products in full float32, at the speed of the fastest kernel at hand: what losses and retrieval stand on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 256  # of a, from which on the detour below pays


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] times b [p, k] transposed, [n, p], in full float32 whatever the matmul precision is set to."""
    with _full_float32(), torch.autocast(a.device.type, enabled=False):
        on_cpu = a.device.type == "cpu" and a.dtype == torch.float32
        if on_cpu and len(a) >= _ROWS and torch.backends.mkldnn.is_available():
            # As a 1 x 1 convolution the product reaches oneDNN, whose kernel takes half the time of MKL's on AMD.
            pixels = a.reshape(1, 1, *a.shape).permute(0, 3, 1, 2)  # channels last, and so is the result
            return F.conv2d(pixels, b[:, :, None, None])[0, :, 0, :].T
        return a @ b.T


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products without TF32 or bfloat16 inside, whichever of PyTorch's two interfaces asked for them."""
    backends: Any = torch.backends
    places = [getattr(backends.mkldnn, "conv", None)]
    old: str | None = None
    try:
        old = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    except RuntimeError:  # the new interface was used, and does not go with the old one
        places += [backends.mkldnn.matmul, backends.cuda.matmul]
    kept = [(place, place.fp32_precision) for place in places if place is not None]
    kept = [(place, precision) for place, precision in kept if old is None or precision not in ("none", "ieee")]
    for place, _ in kept:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in kept:
            place.fp32_precision = precision
        if old is not None:
            torch.set_float32_matmul_precision(old)
