"""What all losses over a batch share: distances, masks without self, extremes of a row, full precision.

Shapes: m embeddings of d dimensions in a batch; `x` is [m, d], a mask or distance matrix [m, m] with anchors as rows.

The distance matrix is never whole. A loss that needs a few entries of each row finds them with `extremes` and computes
just those with `distance_to`. A loss that needs all of them is a function of some rows at a time, and `sum_over_rows`
puts value and gradient together. Both make the squared distances |a|^2 + |b|^2 - 2 ab of a block of rows by one matrix
product and compute anew, from differences, whatever that product rounds too much to decide.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_BLOCK = {"cpu": 2**21, "cuda": 2**26}  # entries of the distance matrix held at a time; on a CPU they stay in its cache
_SMALL = 2**19  # coordinate differences that are computed sooner than a product is mended
_CHUNK = 128  # columns whose least entry is looked at before any of them


def full_precision(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a loss's `forward(self, embeddings, labels)`: check shapes, leave autocast, compute in float32 at least.

    Distances of nearly equal embeddings cancel: in bfloat16 the mined extremes are often the wrong ones.

    Raises:
        ValueError: embeddings are not [m, d] or labels not [m].
    """

    @functools.wraps(forward)
    def wrapper(self: Any, embeddings: Tensor, labels: Tensor) -> Tensor:
        if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"a loss takes embeddings [m, d] and labels [m], not {list(embeddings.shape)} and {list(labels.shape)}"
            )
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            embeddings = embeddings.float()
        with torch.autocast(embeddings.device.type, enabled=False):
            return forward(self, embeddings, labels)

    return wrapper


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raise the one-line error of a user's mistake: the config key, what it is, what would be right.

    Raises:
        ValueError: `ok` is false.
    """
    if not ok:
        raise ValueError(f"{key}={value} is not possible: it must be {wanted}")


def masks(labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [b, m] of the positives (P_i of eq. 5, self excluded) and the negatives (N_i) of some rows [b]."""
    same = labels[rows, None] == labels[None, :]
    positive = same.clone()
    positive[torch.arange(len(rows), device=rows.device), rows] = False
    return positive, ~same


def zero(x: Tensor) -> Tensor:
    """A zero that back-propagates zeros into x: the loss of a batch without a valid anchor or pair.

    NaN stays NaN, so a broken network is not taken for a batch that has nothing to teach.
    """
    return (x * 0).sum()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] times b [p, k] transposed, [n, p], in full float32 whatever the matmul precision is set to."""
    with _full_float32(), torch.autocast(a.device.type, enabled=False):
        if a.device.type == "cpu" and a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
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


def _cdist(a: Tensor, b: Tensor) -> Tensor:
    """Distances [n, p] from differences, exact for near duplicates; the gradient at distance 0 is 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def row_blocks(x: Tensor, members: Tensor) -> Iterator[Tensor]:
    """The members [v] in blocks whose rows of an [m, m] matrix, m = len(x), fit into _BLOCK entries."""
    if len(members):
        yield from members.split(max(1, _BLOCK.get(x.device.type, 2**21) // len(x)))


def _is_small(x: Tensor) -> bool:
    return len(x) ** 2 * x.shape[1] <= _SMALL


class Extremes(NamedTuple):
    """For each valid anchor, the batch indices [v] of the four members that eq. 6 and 7 ask for."""

    anchor: Tensor
    farthest_positive: Tensor
    nearest_negative: Tensor
    farthest: Tensor
    nearest: Tensor


@torch.no_grad()
def extremes(x: Tensor, labels: Tensor) -> Extremes:
    """Find the extremes of each row of the distance matrix, without a graph, in blocks of rows.

    A valid anchor has a positive and a negative in the batch. Ties go to the lower index.
    O(m^2 d) time, O(m d + block) memory. The result is that of exact distances: a matrix product proposes all members
    that its rounding leaves in question, and differences decide between them.
    """
    _, own, sizes = labels.unique(return_inverse=True, return_counts=True)
    size = sizes[own]
    # Valid by the labels, not by the distances: a NaN or an overflow must reach the loss, so that the run stops.
    anchors = torch.nonzero((size > 1) & (size < len(x))).squeeze(1)
    find = _exactly
    if not _is_small(x) and _squares_fit(x):
        # Side by side, the members of a class are a narrow band of a block, and masks are needed only there.
        anchors = anchors[own[anchors].argsort(stable=True)]
        find = _Proposals(x, own, sizes)
    found = [(rows, *find(x, own, rows)) for rows in row_blocks(x, anchors)] or [(anchors,) * 5]
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    order = columns[0].argsort()
    return Extremes(*(column[order] for column in columns))


def _squares_fit(x: Tensor) -> bool:
    """Whether squared distances neither overflow nor vanish; no for NaN."""
    largest = (x - x.mean(dim=0)).square().sum(dim=1).amax()
    limits = torch.finfo(x.dtype)
    return bool((largest < limits.max / 8) & (largest > 8 * limits.tiny / limits.eps))


def _deciding(x: Tensor) -> Tensor:
    # float32 would decide by its last bits between members at nearly one distance; Apple's GPUs have nothing else.
    return x if x.device.type == "mps" else x.double()


def _exactly(x: Tensor, labels: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Farthest positive, nearest negative, farthest and nearest [b] of the anchors [b], from all distances."""
    x = _deciding(x)
    d = _cdist(x[anchor], x)
    same = labels[anchor, None] == labels[None, :]
    self_ = anchor[:, None] == torch.arange(len(x), device=x.device)
    return (
        d.masked_fill(~same | self_, -torch.inf).argmax(dim=1),
        d.masked_fill(same, torch.inf).argmin(dim=1),
        d.masked_fill(self_, -torch.inf).argmax(dim=1),
        d.masked_fill(self_, torch.inf).argmin(dim=1),
    )


class _Proposals:
    """Finds the same as `_exactly`, in about the time of the matrix product."""

    def __init__(self, x: Tensor, labels: Tensor, sizes: Tensor) -> None:
        m, d = x.shape
        self.order = labels.argsort(stable=True)
        self.exact = x = x[self.order]
        # Around its mean the batch has the smallest norms, and with them the smallest rounding errors.
        self.x = x - x.mean(dim=0)
        self.labels = labels[self.order]
        self.stop = sizes.cumsum(0)
        self.start = self.stop - sizes
        self.norms = self.x.square().sum(dim=1)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(m, device=x.device)
        self.minus_twice = F.pad(-2 * self.x, (0, 0, 0, -m % _CHUNK))
        # A product of d terms is off by d * eps / 2 * |a| |b| at most; twice that can swap two members.
        self.rounding = (d + 4) * torch.finfo(x.dtype).eps

    def __call__(self, x: Tensor, labels: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        m, own = len(self.x), self.place[anchor]
        low, high = int(self.start[self.labels[own[0]]]), int(self.stop[self.labels[own[-1]]])
        # The squared distances less what is the same in a row, |anchor|^2.
        key = matmul(self.x[own], self.minus_twice)
        key[:, :m] += self.norms
        slack = self.rounding * (self.norms[own].sqrt() + self.norms.max().sqrt()).square()
        key[:, m:] = -torch.inf
        farthest = _least(-key, slack)
        key[:, m:] = torch.inf

        rows = torch.arange(len(own), device=x.device)
        same = self.labels[own, None] == self.labels[None, low:high]
        other = ~same
        other[rows, own - low] = True
        positive = _least((-key[:, low:high]).masked_fill_(other, torch.inf), slack)
        key[rows, own] = torch.inf
        nearest = _least(key, slack)
        key[:, low:high].masked_fill_(same, torch.inf)
        negative = _least(key, slack)
        if positive is None or negative is None or farthest is None or nearest is None:
            return _exactly(x, labels, anchor)  # too many members at nearly one distance
        return (
            self._decide(own, positive[0], positive[1] + low, -1),
            self._decide(own, *negative, 1),
            self._decide(own, *farthest, -1),
            self._decide(own, *nearest, 1),
        )

    def _decide(self, own: Tensor, row: Tensor, column: Tensor, sign: int) -> Tensor:
        """Of the proposed columns of each row the one at the smallest sign * distance, [b]."""
        chosen = torch.empty_like(own)
        chosen[row] = column
        several = torch.bincount(row, minlength=len(own))[row] > 1
        if several.any():
            row, column = row[several], column[several]
            # The last key first, as each sort keeps the order of the one before among equals.
            order = self.order[column].argsort()
            row, column = row[order], column[order]
            parts = [
                torch.linalg.vector_norm(_deciding(self.exact[own[row[i]]]) - _deciding(self.exact[column[i]]), dim=1)
                for i in _pairs(self.exact, row)
            ]
            order = (sign * torch.cat(parts)).argsort(stable=True)
            order = order[row[order].argsort(stable=True)]
            row, column = row[order], column[order]
            first = torch.ones_like(row, dtype=torch.bool)
            first[1:] = row[1:] != row[:-1]
            chosen[row[first]] = column[first]
        return self.order[chosen]


def _least(key: Tensor, slack: Tensor) -> tuple[Tensor, Tensor] | None:
    """(row, column) of the entries within slack [b] of the least of their row; None if they are very many."""
    b, width = key.shape
    # Minima without their places take a tenth of argmin's time; where there are no whole chunks, each entry is one.
    least = key.view(b, -1, _CHUNK).amin(dim=2) if width % _CHUNK == 0 else key
    limit = least.amin(dim=1) + slack
    row, chunk = torch.nonzero(least <= limit[:, None], as_tuple=True)
    if len(row) > 32 * b:
        return None
    size = width // least.shape[1]
    members = chunk[:, None] * size + torch.arange(size, device=key.device)
    near, place = torch.nonzero(key[row[:, None], members] <= limit[row, None], as_tuple=True)
    return (row[near], members[near, place]) if len(near) <= 32 * b else None


def rowwise(x: Tensor, terms: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """terms(rows, squared, *inputs) for all rows of the matrix of squared distances, block by block, with gradient.

    The backward pass makes each block anew, so neither pass holds more than a block beside O(m d).

    Args:
        x: embeddings [m, d].
        terms: (rows [b], squared distances [b, m] of those rows to all, *inputs) -> [b], differentiable by torch. The
            gradient of a distance that is 0 must be finite, and counts as 0.
        inputs: further tensors that get a gradient.

    Returns:
        [m]
    """
    return _Rowwise.apply(terms, x, *inputs)


def sum_over_rows(x: Tensor, terms: Callable[[Tensor, Tensor], Tensor], *, symmetric: bool = False) -> Tensor:
    """The sum of rowwise(x, terms), with its gradient found along with it: each block is made once.

    Args:
        x: embeddings [m, d].
        terms: (rows [b], squared [b, m]) -> [b], as for `rowwise`.
        symmetric: the term of a pair is the same in the rows of both, which halves the work of the gradient.
    """
    wanted = torch.is_grad_enabled() and x.requires_grad
    return _SumOverRows.apply(x if wanted else x.detach(), terms, symmetric)


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Callable[..., Tensor], x: Tensor, *inputs: Tensor) -> Tensor:
        ctx.terms = terms
        ctx.save_for_backward(x, *inputs)
        return torch.cat([terms(block.rows, block.squared, *inputs) for block in _blocks(x)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *inputs = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        into, sums = torch.zeros_like(x), [torch.zeros_like(each) for each in inputs]
        for block in _blocks(x):
            squared = block.squared.requires_grad_()
            with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
                value = ctx.terms(block.rows, squared, *inputs)
            weight, *others = torch.autograd.grad(value, [squared, *inputs], gradient[block.rows])
            for total, other in zip(sums, others, strict=True):
                total += other
            block.pull(into, weight)
        return None, into, *sums


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, terms: Callable[..., Tensor], symmetric: bool) -> Tensor:
        total, into = x.new_zeros(()), torch.zeros_like(x)
        for block in _blocks(x):
            squared = block.squared.requires_grad_(ctx.needs_input_grad[0])
            with torch.set_grad_enabled(squared.requires_grad):
                value = terms(block.rows, squared).sum()
            total += value.detach()
            if squared.requires_grad:
                block.pull(into, *torch.autograd.grad(value, squared), symmetric=symmetric)
        ctx.save_for_backward(into)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


class _Block(NamedTuple):
    """Some rows of the matrix of squared distances, and the entries that were computed from differences."""

    x: Tensor
    centred: Tensor
    columns: Tensor  # centred transposed, [d, m]
    rows: Tensor
    squared: Tensor
    near: tuple[Tensor, Tensor] | None  # None: all of them

    def pull(self, into: Tensor, weight: Tensor, *, symmetric: bool = False) -> None:
        """Add to `into` [m, d] the gradient that the weights [b, m] of the squared distances have.

        Each adds 2 weight_ij (x_i - x_j) to row i and takes it from row j; if symmetric, the row i gets both, from here
        and from what j's row would take from it.
        """
        x, centred, rows = self.x, self.centred, self.rows
        weight = weight * (4 if symmetric else 2)
        if self.near is None:
            # On a GPU the gradient of cdist holds a difference for each of its distances.
            step = max(1, _BLOCK["cuda"] // x.numel()) if x.is_cuda else len(rows)
            for part, pulls in zip(rows.split(step), weight.split(step), strict=True):
                with torch.enable_grad():
                    ends = x[part].requires_grad_(), x.clone().requires_grad_()
                    d = _cdist(*ends)
                first, second = torch.autograd.grad(d, ends, pulls * d)
                into[part] += first
                if not symmetric:
                    into += second
            return
        row, column = self.near
        near = weight[row, column]
        weight[row, column] = 0
        _pull(into, x, rows[row], column, near, both=not symmetric)
        # What is left has x_i and x_j far enough apart to be taken separately.
        into[rows] += weight.sum(dim=1)[:, None] * centred[rows] - matmul(weight, self.columns)
        if not symmetric:
            into += weight.sum(dim=0)[:, None] * centred - matmul(weight.T, centred[rows].T)


@torch.no_grad()
def _blocks(x: Tensor) -> Iterator[_Block]:
    centred = x - x.mean(dim=0)  # has the smallest norms, and with them the smallest rounding errors
    columns = centred.T.contiguous()
    minus_twice = -2 * centred
    norms = centred.square().sum(dim=1)
    # The product's error is some eps of the norms: below this share of them a squared distance would lose digits.
    share = 1e-2 if x.dtype == torch.float32 else 1e-4
    small = _is_small(x)
    for rows in row_blocks(x, torch.arange(len(x), device=x.device)):
        if not small:
            squared = matmul(centred[rows], minus_twice).add_(norms).add_(norms[rows, None])
            i, j = torch.nonzero(squared < share * norms[rows, None], as_tuple=True)
            if len(i) * 16 <= squared.numel():
                for part in _pairs(x, i):
                    squared[i[part], j[part]] = (x[rows[i[part]]] - x[j[part]]).square().sum(dim=1)
                yield _Block(x, centred, columns, rows, squared, (i, j))
                continue
        yield _Block(x, centred, columns, rows, _cdist(x[rows], x).square(), None)


def root(squared: Tensor) -> Tensor:
    """Distances of squared distances; the gradient at 0 is 0."""
    positive = squared > 0
    return torch.where(positive, squared, 1).sqrt().where(positive, squared)


class _DistanceTo(torch.autograd.Function):
    """Distances of pairs, whose backward pass keeps no differences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        d = torch.empty(len(first), dtype=x.dtype, device=x.device)
        for part in _pairs(x, first):
            torch.linalg.vector_norm(x[first[part]] - x[second[part]], dim=1, out=d[part])
        ctx.save_for_backward(x, first, second, d)
        return d

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, first, second, d = ctx.saved_tensors
        weight = torch.where(d > 0, gradient / d, torch.zeros_like(d))
        return _pull(torch.zeros_like(x), x, first, second, weight), None, None


def _pairs(x: Tensor, first: Tensor) -> Iterator[slice]:
    """Slices of the pairs whose differences fit into _BLOCK entries."""
    step = max(1, _BLOCK.get(x.device.type, 2**21) // 4 // max(1, x.shape[1]))
    yield from (slice(start, start + step) for start in range(0, len(first), step))


def _pull(into: Tensor, x: Tensor, first: Tensor, second: Tensor, weight: Tensor, *, both: bool = True) -> Tensor:
    """Add weight [v] * (x[first] - x[second]) to the rows `first` of `into`; if both, take it from `second`."""
    for part in _pairs(x, first):
        pull = (x[first[part]] - x[second[part]]).mul_(weight[part, None])
        into.index_add_(0, first[part], pull)
        if both:
            into.index_add_(0, second[part], pull, alpha=-1)
    return into


def distance_to(x: Tensor, anchor: Tensor, other: Tensor) -> Tensor:
    """Distances [v] with gradient of x[anchor] to x[other]; the gradient at distance 0 is 0. O(v + m d) memory."""
    return _DistanceTo.apply(x, anchor, other)
