"""What every loss promises: its inputs are checked, it computes in full precision, and mistakes are named."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dml.losses.building_blocks.host import Unsure, settled

_SCALE = 1e10  # sums of very many squares of numbers from 1 / _SCALE to _SCALE are within float32
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def checked(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a loss's `forward(self, embeddings, labels, ...)`: check inputs, leave autocast, use float32 at least.

    Distances of nearly equal embeddings cancel: in bfloat16 the mined extremes are often the wrong ones. Labels may
    come as a list or an array too.

    A third argument is taken as other libraries give one (pytorch-metric-learning's indices_tuple), if it is None. The
    class also gets a repr that shows its arguments.

    Raises:
        ValueError: embeddings are no tensor of floats [m, d] with m and d of 1 or more, labels not whole numbers [m],
            or anchors not 1 to m, or there is a third argument.
    """

    @functools.wraps(forward)
    def wrapper(self: Any, embeddings: Tensor, labels: Any, indices_tuple: None = None, **given: Any) -> Tensor:
        if indices_tuple is not None:
            raise ValueError(
                f"{type(self).__name__} takes no pairs or triplets of a miner (indices_tuple): it mines by itself, "
                "from embeddings and labels"
            )
        if not isinstance(embeddings, Tensor):
            raise ValueError(f"a loss takes embeddings [m, d] as a tensor, not as {type(embeddings).__name__}")
        labels = _tensor(labels, embeddings.device)
        if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not embeddings.numel():
            raise ValueError(
                f"a loss takes embeddings [m, d] and labels [m], not {list(embeddings.shape)} and {list(labels.shape)}"
            )
        if not embeddings.is_floating_point() or labels.dtype not in _WHOLE:
            types = f"{embeddings.dtype} and {labels.dtype}"
            raise ValueError(f"a loss takes embeddings of floats and labels of whole numbers, not {types}")
        if (anchors := given.get("anchors")) is not None:
            require(0 < anchors <= len(labels), "anchors", anchors, f"1 to {len(labels)}")
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            embeddings = embeddings.float()
        labels = labels.long()
        with torch.autocast(embeddings.device.type, enabled=False):
            return settled(lambda _: forward(self, embeddings, labels, **given), embeddings.device, self)

    return _InClass(wrapper)  # until its class is made


class _InClass:
    """A `forward` in the body of a class, which leaves it the plain function and a repr."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward

    def __set_name__(self, owner: Any, name: str) -> None:
        setattr(owner, name, self.forward)
        if "extra_repr" not in vars(owner):
            owner.extra_repr = _arguments

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        return self.forward(*given, **named)


def _arguments(loss: Any) -> str:
    """The arguments that a loss was made with, as far as it keeps them under their names: alpha=4.0, epsilon=0.0001."""
    kept = {}
    for name in inspect.signature(type(loss).__init__).parameters:
        value = getattr(loss, name, getattr(loss, f"_{name}", loss))
        if not isinstance(value, torch.nn.Module | Tensor):  # these are shown by themselves, or are weights
            kept[name] = value
    return ", ".join(f"{name}={value!r}" for name, value in kept.items())


def _tensor(labels: Any, device: torch.device) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    try:
        return torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        name = type(labels).__name__
        raise ValueError(
            f"a loss takes labels [m] of whole numbers, as a tensor, an array or a list; this {name} is none: {error}"
        ) from error


def full_precision(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As `checked`, for a loss of squares: right at any scale of the embeddings, NaN if one of them is not finite.

    Squares of float32 numbers overflow or vanish long before the numbers do; embeddings for which they might are
    computed in float64, which costs a look at the largest. A loss beyond float32 is infinite. Where the host would wait
    for that look, it comes with the last one of the loss (`settled`).

    Raises:
        ValueError: as `checked`.
    """

    @functools.wraps(forward)
    def wrapper(self: Any, embeddings: Tensor, labels: Tensor, **given: Any) -> Tensor:
        dtype, device = embeddings.dtype, embeddings.device
        largest = torch.stack(embeddings.detach().aminmax()).abs().max()
        low, high = (1 / _SCALE, _SCALE) if dtype == torch.float32 and device.type != "mps" else (-1.0, math.inf)

        def compute(unsure: Unsure) -> Tensor:
            x, finite = embeddings, True
            if unsure is not None:
                unsure.append(~((largest > low) & (largest < high)))
            elif not low < float(largest) < high:
                x, finite = (x.double() if high < math.inf else x), math.isfinite(largest)
            value = forward(self, x, labels, **given)
            # Mining may pass over a broken member, whose gradient is broken all the same: the loss must say so.
            return (value if finite else value + torch.nan).to(dtype)

        return settled(compute, device)

    return checked(wrapper)


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raise the one-line error of a user's mistake: the config key, what it is, what would be right.

    Raises:
        ValueError: `ok` is false.
    """
    if not ok:
        raise ValueError(f"{key}={value} is not possible: it must be {wanted}")


def without_anchors(loss: nn.Module) -> str | None:
    """The name of this loss, or of one of its `losses`, if its forward takes no `anchors`; None: all take them."""
    if "anchors" not in inspect.signature(loss.forward).parameters:
        return type(loss).__name__
    inner = getattr(loss, "losses", ())
    return next(filter(None, map(without_anchors, inner.values() if isinstance(inner, nn.ModuleDict) else inner)), None)


def zero(x: Tensor) -> Tensor:
    """A zero that back-propagates zeros into x: the loss of a batch without a valid anchor or pair.

    NaN stays NaN, so a broken network is not taken for a batch that has nothing to teach.
    """
    return (x * 0).sum()
