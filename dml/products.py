"""Matrix products in full float32, at the speed of the fastest kernel at hand: what losses and retrieval stand on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def matmul(a: Tensor, b: Tensor, add: Tensor | None = None) -> Tensor:
    """a [n, k] times b [p, k] transposed, plus add [p]: [n, p], in full float32 whatever the matmul precision is.

    Or a batch of such products, [c, n, k] and [c, p, k]. Without gradient on a CPU.
    """
    with full_float32():
        plain = a.ndim == 2 and a.device.type == "cpu" and a.dtype == torch.float32
        if plain and len(a) and torch.backends.mkldnn.is_available():
            # oneDNN's kernel, which takes half the time of MKL's on AMD; torch.compile emits the same call. It knows
            # no autocast.
            return torch.ops.mkldnn._linear_pointwise(a, b, add, "none", [], "")
        with torch.autocast(a.device.type, enabled=False):
            return a @ b.mT if add is None else torch.addmm(add, a, b.T)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products without TF32 or bfloat16 inside, whichever of PyTorch's two interfaces asked for them.

    These are settings of the process: threads that multiply at the same time need this around all of them.
    """
    backends: Any = torch.backends
    places: list[Any] = []
    old: str | None = None
    try:
        old = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    except RuntimeError:  # the new interface was used, and does not go with the old one
        places = [backends.mkldnn.matmul, backends.cuda.matmul]
    kept = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, kept, strict=True):
            place.fp32_precision = precision
        if old is not None:
            torch.set_float32_matmul_precision(old)
