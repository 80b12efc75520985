"""What a loss reads from the device, which makes the host wait: once its labels and the largest coordinate, and once
whether anything was left out.

All that follows from the labels alone is computed on the host and goes to the device without waiting. Lists whose
length depends on the embeddings have a length that is fixed beforehand, and say whether it was enough.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_ATTRIBUTE = "_dml_on_host"  # of labels that `read_together` has brought


def reading_waits(device: torch.device) -> bool:
    """Whether the host waits for what it reads from this device, and lists of fixed length do not."""
    return device.type not in ("cpu", "mps")


def read_together(largest: Tensor, labels: Tensor) -> float:
    """A number of the device, and the labels [m], which `on_host` then finds; both in one copy."""
    if not reading_waits(labels.device):
        return float(largest)
    both = torch.cat([largest.double().view(1).view(torch.int64), labels]).cpu()
    if not labels.is_inference():
        setattr(labels, _ATTRIBUTE, (labels._version, both[1:]))
    return float(both[:1].view(torch.float64))


def on_host(labels: Tensor) -> Tensor:
    """The labels [m] on the CPU."""
    read = getattr(labels, _ATTRIBUTE, None)
    return read[1] if read is not None and read[0] == labels._version else labels.cpu()  # else they have been changed


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


def all_there(unsure: Sequence[Tensor]) -> bool:
    """Whether none of these scalars is true; all are looked at together, as the host waits for that."""
    return not unsure or not bool(torch.stack(list(unsure)).any())


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
