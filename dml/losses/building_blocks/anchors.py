"""Losses that are a sum over anchors, each a function of its distances or cosines to all others."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dml.losses.building_blocks.host import Positives, on_host, reading_waits, to_device
from dml.losses.building_blocks.log_sums import Entrywise, Slope, log_sum_but
from dml.losses.building_blocks.rowwise import rowwise, sum_over_rows

_LEAST = 1e-12  # the norm below which an embedding is no direction


class Row(NamedTuple):
    """Some anchors and what they are compared with.

    Attributes:
        anchor: batch indices [b].
        values: of all members [b, m]: gaps 1 - S of cosines S, or squared distances.
        positives: those of each anchor's positives [b, n]; where it has fewer than n, its own.
        real: which of these are positives [b, n].
        of_class: the places of all members of an anchor's class [b, n], and its own where there are fewer.
        classes: numbers of the classes of the anchors [b], and of all members [m].
    """

    anchor: Tensor
    values: Tensor
    positives: Tensor
    real: Tensor
    of_class: Tensor
    classes: tuple[Tensor, Tensor]

    @property
    def negative(self) -> Tensor:
        """Which of all members are negatives [b, m]."""
        own, of_all = self.classes
        return own[:, None] != of_all

    def log_sum(self, exponent: Entrywise, slope: Slope) -> Tensor:
        """log sum over the negatives of e^exponent(v) [b], as `log_sum_but`."""
        return log_sum_but(self.values, self.of_class, exponent, slope)

    def log_sum_of_scaled(self, scale: float, *, all_others: bool = False) -> Tensor:
        """log sum over the negatives, or over all others, of e^(scale v) [b]."""
        without = self.anchor[:, None] if all_others else self.of_class
        return log_sum_but(self.values, without, lambda v: v * scale, lambda v: scale)


def valid_anchors(labels: Tensor, anchors: int | None, *, negatives: bool = True) -> tuple[Tensor, Tensor]:
    """The anchors [v] that have a positive, and a negative if that is asked, and how many positives [v] each has."""
    rows, positives = (to_device(each, labels.device) for each in anchors_on_host(labels, anchors, negatives=negatives))
    return rows, positives


def anchors_on_host(labels: Tensor, anchors: int | None, *, negatives: bool = True) -> tuple[Tensor, Tensor]:
    """The same on the host."""
    _, own, sizes = on_host(labels).unique(return_inverse=True, return_counts=True)
    positives = sizes[own[:anchors]] - 1
    valid = positives > 0
    if negatives:
        valid &= positives < len(labels) - 1
    rows = valid.nonzero()[:, 0]
    return rows, positives[rows]


def unit(x: Tensor) -> Tensor:
    """x [m, d] on the sphere: each row divided by its norm, or by 1e-12 where it is shorter than that."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(_LEAST)


def sum_over_cosines(
    x: Tensor, labels: Tensor, term: Callable[..., Tensor], rows: Tensor, *inputs: Tensor, share: int = 1
) -> Tensor:
    """The sum of term(Row, *inputs) -> [b] over the anchors `rows` [v], of the gaps 1 - S of embeddings x [m, d] on the
    sphere.

    A gap is half of a squared distance, so it has all its digits where a cosine near 1 has lost them.
    `inputs`: further tensors that get a gradient. `share`: how many numbers the term holds for each gap.
    """
    z, terms, missing = _of_cosines(x, labels, term)
    return sum_over_rows(z, terms, *missing, *inputs, rows=rows, share=share)


def rows_of_cosines(x: Tensor, labels: Tensor, term: Callable[[Row], Tensor], rows: Tensor) -> Tensor:
    """As `sum_over_cosines`, but what the term returns of each anchor, or of each block of anchors, is not summed."""
    z, terms, missing = _of_cosines(x, labels, term)
    return rowwise(z, terms, *missing, rows=rows)


def _of_cosines(
    x: Tensor, labels: Tensor, term: Callable[..., Tensor]
) -> tuple[Tensor, Callable[..., Tensor], tuple[Tensor, ...]]:
    """What makes a function of squared distances of a function of gaps: embeddings, the function, further inputs."""
    z, short = unit(x), torch.linalg.vector_norm(x.detach(), dim=1) < _LEAST
    if reading_waits(x.device) or bool(short.any()):
        return z, _of_products(labels, term), (torch.where(short, 1 - z.square().sum(dim=1), 0),)
    columns = Positives(labels)
    return z, lambda own, squared, *inputs: term(_row(columns, own, squared / 2), *inputs), ()


def sum_over_products(
    z: Tensor, missing: Tensor, labels: Tensor, term: Callable[[Row], Tensor], rows: Tensor, *, share: int = 1
) -> Tensor:
    """The same for rows z [m, d] that are no unit vectors, of 1 less their dot products; `missing` [m] is 1 - |z|^2."""
    return sum_over_rows(z, _of_products(labels, term), missing, rows=rows, share=share)


def _of_products(labels: Tensor, term: Callable[..., Tensor]) -> Callable[..., Tensor]:
    columns = Positives(labels)

    def gaps(own: Tensor, squared: Tensor, missing: Tensor, *inputs: Tensor) -> Tensor:
        # |a - b|^2 = |a|^2 + |b|^2 - 2 ab
        return term(_row(columns, own, (squared + missing[own, None] + missing) / 2), *inputs)

    return gaps


def sum_over_distances(x: Tensor, labels: Tensor, term: Callable[[Row], Tensor], rows: Tensor) -> Tensor:
    """The sum of term(Row) -> [b] over the anchors `rows` [v], of squared distances of embeddings x [m, d]."""
    columns = Positives(labels)
    return sum_over_rows(x, lambda own, squared: term(_row(columns, own, squared)), rows=rows)


def rows_of_distances(x: Tensor, labels: Tensor, term: Callable[[Row], Tensor], rows: Tensor) -> Tensor:
    """As `sum_over_distances`, but what the term returns of each anchor is not summed."""
    columns = Positives(labels)
    return rowwise(x, lambda own, squared: term(_row(columns, own, squared)), rows=rows)


def _row(positives: Positives, anchor: Tensor, values: Tensor) -> Row:
    columns, real = positives.of(anchor)
    numbers = positives.numbers
    return Row(anchor, values, values.gather(1, columns), real, columns, (numbers[anchor], numbers))


def log_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """log sum e^v over the true entries of each row, of which there must be one: [b, k] -> [b]."""
    return values.masked_fill(~mask, -torch.inf).logsumexp(dim=1)


def log_one_plus_sum(values: Tensor, mask: Tensor | None = None, dim: int = 1) -> Tensor:
    """log(1 + sum e^v) over the true entries of each row (or column, dim = 0), [b, k] -> [b]; 0 if there are none."""
    if mask is not None:
        values = values.masked_fill(~mask, -torch.inf)
    top = values.detach().amax(dim=dim).clamp_min(0)
    return top + ((values - top.unsqueeze(dim)).exp().sum(dim=dim) + torch.expm1(-top)).log1p()


def softplus(values: Tensor) -> Tensor:
    """log(1 + e^v), to the last digit at any v."""
    return torch.logaddexp(values, values.new_zeros(()))


def mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the true entries of each row, of which there must be one: [b, k] -> [b]."""
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1)


def hinges(values: Tensor, mask: Tensor) -> Tensor:
    """Of the true entries of each row, those above 0: [b, k] -> their sum, and how many there are, [b, 2]."""
    kept = values.masked_fill(~mask, 0).clamp_min(0)
    return torch.stack([kept.sum(dim=1), (kept > 0).sum(dim=1).to(values.dtype)], dim=1)


def mean_hinge(found: Tensor) -> Tensor:
    """The mean of all hinges above 0 of `hinges` of some rows, [v, 2] -> scalar; 0 if there are none."""
    total, count = found.sum(dim=0)
    return total / count.clamp_min(1)
