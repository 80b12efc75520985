"""What a loss reads from the device, which makes the host wait: its labels, and whether anything was left out.

All that follows from the labels alone is computed on the host and goes to the device without waiting. Lists whose
length depends on the embeddings have a length that is fixed beforehand, and say whether it was enough (`settled`).
However many losses a loss is made of, each is read once.
"""

import copy
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

_ATTRIBUTE = "_dml_on_host"  # of labels whose values the host has
_T = TypeVar("_T")
Unsure = list[Tensor] | None


def reading_waits(device: torch.device) -> bool:
    """Whether the host waits for what it reads from this device, and lists of fixed length do not."""
    return device.type not in ("cpu", "mps")


class _Pass(NamedTuple):
    unsure: Unsure


_pass: ContextVar[_Pass | None] = ContextVar("pass", default=None)  # the one that is on


def settled(compute: Callable[[Unsure], _T], device: torch.device, changes: nn.Module | None = None) -> _T:
    """What `compute` returns, which need not read how long its lists have to be.

    Where reading waits, it gets a list for scalars of the device that say that something was left out. They are looked
    at together at the end of the outermost call, as the host waits for that. If one is true, that call computes all
    anew with None, for which all is to be read, and the state of a module that has changed is put back before. Where
    reading does not wait there is None at once.
    """
    if (outer := _pass.get()) is not None or not reading_waits(device):
        return compute(None if outer is None else outer.unsure)
    unsure: list[Tensor] = []
    put_back = _state_of(changes)
    value = _within(_Pass(unsure), compute)
    if unsure and bool(torch.stack(unsure).any()):
        del value
        put_back()
        value = _within(_Pass(None), compute)
    return value


def _within(now: _Pass, compute: Callable[[Unsure], _T]) -> _T:
    token = _pass.set(now)
    try:
        return compute(now.unsure)
    finally:
        _pass.reset(token)


def _state_of(module: nn.Module | None) -> Callable[[], None]:
    """What puts back all that a checkpoint has of a module but what is trained."""
    modules = [] if module is None else list(module.modules())
    own = [each for each in modules if type(each).get_extra_state is not nn.Module.get_extra_state]
    states = [(each, copy.deepcopy(each.get_extra_state())) for each in own]
    buffers = [(buffer, buffer.clone()) for each in modules for buffer in each.buffers(recurse=False)]

    def put_back() -> None:
        for each, state in states:
            each.set_extra_state(state)
        for buffer, values in buffers:
            buffer.copy_(values)

    return put_back


def on_host(labels: Tensor) -> Tensor:
    """The labels [m] on the CPU, read once; they are not to be changed."""
    read = getattr(labels, _ATTRIBUTE, None)
    if read is None or read[:2] != (id(labels), labels._version):  # a copy, or they have been changed
        values = labels.cpu()
        tell_host(labels, values)
        return values
    return read[2]


def tell_host(labels: Tensor, values: Tensor) -> None:
    """Let `on_host` know the values [m] of labels of the device."""
    if reading_waits(labels.device) and not labels.is_inference():
        setattr(labels, _ATTRIBUTE, (id(labels), labels._version, values))


def read_with(labels: Tensor, values: Tensor) -> Tensor:
    """Values of the device on the host in float64; in the same copy come the labels [m], which `on_host` then finds."""
    if not reading_waits(labels.device):
        return values.cpu().double()
    both = torch.cat([values.double().flatten().view(torch.int64), labels]).cpu()
    tell_host(labels, both[values.numel() :])
    return both[: values.numel()].view(torch.float64).view(values.shape)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for it."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=reading_waits(device))


class Places(NamedTuple):
    """The true entries of a mask [b, m], as many as there is room for.

    Attributes:
        row, column: [s]; 0 where `real` is false.
        real: [s].
        missed: whether there are more, a scalar on the device.
    """

    row: Tensor
    column: Tensor
    real: Tensor
    missed: Tensor


def few_places(mask: Tensor, room: int) -> Places:
    """The first `room` true entries of a mask [b, m], without reading how many there are."""
    room = min(room, mask.numel())
    row, column = torch.nonzero_static(mask, size=room, fill_value=0).unbind(1)
    count = mask.sum()
    return Places(row, column, torch.arange(room, device=mask.device) < count, count > room)


def positive_pairs(labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each positive of some rows [v], on the host: the row's place in `rows`, ascending, and the positive; [t] each."""
    _, own, sizes = on_host(labels).unique(return_inverse=True, return_counts=True)
    order, starts, counts = own.argsort(stable=True), sizes.cumsum(0) - sizes, sizes[own[rows]]
    place = torch.arange(len(rows)).repeat_interleave(counts)
    within = torch.arange(len(place)) - (counts.cumsum(0) - counts)[place]
    members = order[starts[own[rows]][place] + within]
    other = members != rows[place]
    return place[other], members[other]


class Positives:
    """Where the members of each class stand.

    Args:
        labels: [m].
    """

    def __init__(self, labels: Tensor) -> None:
        _, own, sizes = on_host(labels).unique(return_inverse=True, return_counts=True)
        parts = own, sizes, own.argsort(stable=True), sizes.cumsum(0) - sizes
        lengths = [len(part) for part in parts]
        self.own, self.sizes, self.order, self.starts = to_device(torch.cat(parts), labels.device).split(lengths)
        self.numbers = self.own.int()  # which are compared in half the time
        self.largest = int(sizes.max())
        self._places = torch.arange(self.largest, device=labels.device)

    def of(self, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """The members of the classes of anchors [b], [b, n], and which are positives; else the anchor itself."""
        own = self.own[anchor]
        place = self.starts[own, None] + torch.minimum(self._places, self.sizes[own, None] - 1)
        columns = self.order[place]
        real = (self._places < self.sizes[own, None]) & (columns != anchor[:, None])
        return torch.where(real, columns, anchor[:, None]), real

    def negative(self, anchor: Tensor) -> Tensor:
        """Which of all members are negatives of anchors [b], [b, m]."""
        return self.numbers[anchor, None] != self.numbers
