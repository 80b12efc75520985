"""k-reciprocal re-ranking (Zhong, Zheng, Cao and Li 2017): images that find each other, and share whom they find.

As in the authors' re_ranking_ranklist.py, in float64, with the item itself first by its index and of equally near
ones the lower index first. It looks at queries and gallery together, so what it gives has names of its own.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor

from dml.products import matmul
from dml.retrieval.ranks import positive_counts
from dml.retrieval.rows import Ranks
from dml.retrieval.search import Search

_AT_ONCE = 2**23  # distances that are held


class KReciprocal:
    """Ranks by d* = (1 - weight) J + weight d, where d is the squared distance, as a share of the item's largest.

    R(p, k) are those of the k nearest of p that have p among their own k nearest, and p. To R(p, k1) come the
    R(q, k1 / 2) of its members q of which more than two thirds are in it. V(p) holds exp(-d) of these, and sums to 1;
    it is averaged over p and its k2 - 1 nearest. J is the Jaccard distance of V(p) and V(q): 1 - sum min / sum max.

    O(M^2 D) time and O(M (k1^2 + D)) memory for the M images of queries and gallery.

    Args:
        k1, k2: about twice the images of a class, and a third of that (Zhong et al.: 20 and 6).
        weight: of the distance d (lambda).

    Raises:
        ValueError: a k is less than 1, or the weight not from 0 to 1.
    """

    def __init__(
        self,
        *,
        k1: Annotated[int, Ge(1)] = 20,
        k2: Annotated[int, Ge(1)] = 6,
        weight: Annotated[float, Interval(ge=0, le=1)] = 0.3,
    ) -> None:
        for name, k in (("k1", k1), ("k2", k2)):
            if k < 1:
                raise ValueError(f"{name}={k} is not possible: it must be at least 1")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight={weight} is not possible: it must be from 0 to 1")
        self.k1, self.k2, self.weight = k1, k2, weight

    def blocks(
        self,
        x: Tensor,
        labels: np.ndarray,
        gallery: Tensor | None,
        gallery_labels: np.ndarray | None,
        own: np.ndarray | None,
        *,
        share: tuple[int, int],
        add_up: Callable[[np.ndarray], np.ndarray],
    ) -> Iterator[tuple[np.ndarray, Ranks]]:
        """Some queries [q] at a time with the ranks of their positives among the gallery."""
        if gallery is None or gallery_labels is None:
            every, gallery_labels, place = x, labels, np.arange(len(x))
            items, own = len(x), place
        else:
            own = np.full(len(x), -1) if own is None else own
            # A query that is in the gallery too is one image, not two that find each other.
            outside = own < 0
            items = len(gallery)
            every = torch.cat([gallery, x[torch.from_numpy(outside).to(x.device)]])
            place = np.where(outside, items + np.cumsum(outside) - 1, own)
        if self.k1 >= len(every) or self.k2 > len(every):
            raise ValueError(f"k1={self.k1} and k2={self.k2} are too many for {len(every)} images")
        exact = every.double()
        norms = exact.square().sum(dim=1)
        largest = np.concatenate(
            [_squared(exact, norms, rows).amax(dim=1).numpy(force=True) for rows in _rows(len(every))]
        )
        largest[largest == 0] = 1  # all at one place
        positives = positive_counts(labels, gallery_labels, own)
        shared = self._shared(every, largest)
        by_item = shared.tocsc()
        for rows in _rows(len(x), len(every)):
            counts = positives[rows]
            last = counts.cumsum()
            ranks = np.zeros(int(last[-1]), dtype=np.int64)
            mine = np.arange(len(rows))[share[0] :: share[1]]
            near = _squared(exact, norms, place[rows[mine]]).numpy(force=True)
            for i, distance in zip(mine, near, strict=True):
                p, query = place[rows[i]], rows[i]
                apart = (1 - self.weight) * _jaccard(shared, by_item, p) + self.weight * distance / largest[p]
                right = gallery_labels == labels[query]
                if own[query] >= 0:
                    right[own[query]], apart[own[query]] = False, np.inf
                ranks[last[i] - counts[i] : last[i]] = ranks_of_row(apart[:items], np.flatnonzero(right))
            yield rows, Ranks(add_up(ranks), counts)

    def _shared(self, every: Tensor, largest: np.ndarray) -> Any:
        """V as sparse rows [M, M]."""
        from scipy.sparse import csr_array

        n, depth = len(every), max(self.k1, self.k2 - 1)
        among = every.numpy(force=True)
        near = np.column_stack([np.arange(n), Search(among)(among, depth, np.arange(n))[0]])

        def lists(k: int) -> Any:
            """Each and its k nearest, as ones."""
            index = near[:, : k + 1]
            ones = np.ones(index.size, dtype=np.float32)
            return csr_array((ones, index.ravel(), np.arange(n + 1) * (k + 1)), shape=(n, n))

        def mutual(k: int) -> Any:
            return (nearest := lists(k)).multiply(nearest.T).tocsr()

        whole, half = mutual(self.k1), mutual(int(np.around(self.k1 / 2)))
        common = (whole @ half.T).multiply(whole).tocoo()  # how many of R(q, k1 / 2) are in R(p, k1), for its members q
        sizes = half.sum(axis=1)
        kept = 3 * common.data > 2 * sizes[common.col]
        chosen = csr_array((np.ones(kept.sum(), np.float32), (common.row[kept], common.col[kept])), shape=(n, n))
        members = (whole + chosen @ half).tocsr()
        members.sort_indices()
        row = np.repeat(np.arange(n), np.diff(members.indptr))
        apart = np.empty(len(row))
        step = max(1, _AT_ONCE // every.shape[1])
        for at in range(0, len(row), step):
            pair = [torch.from_numpy(each[at : at + step]).to(every.device) for each in (row, members.indices)]
            a, b = (every[index].double() for index in pair)
            apart[at : at + step] = (a - b).square().sum(dim=1).numpy(force=True)
        values = np.exp(-apart / largest[row])
        values /= np.bincount(row, values, minlength=n)[row]
        shared = csr_array((values, members.indices, members.indptr), shape=(n, n))
        return (lists(self.k2 - 1).astype(np.float64) @ shared / self.k2).tocsr()


def _jaccard(shared: Any, by_item: Any, p: int) -> np.ndarray:
    """The Jaccard distances [M] of an item to all."""
    mine = slice(shared.indptr[p], shared.indptr[p + 1])
    member, value = shared.indices[mine], shared.data[mine]
    first, last = by_item.indptr[member], by_item.indptr[member + 1]
    sizes = last - first
    index = np.repeat(first - np.concatenate([[0], sizes.cumsum()[:-1]]), sizes) + np.arange(sizes.sum())
    least = np.minimum(np.repeat(value, sizes), by_item.data[index])
    common = np.bincount(by_item.indices[index], least, minlength=shared.shape[0])
    return 1 - common / (2 - common)


def ranks_of_row(distance: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """How many items [P] come before each of some [P], by distances [N]; of equal ones the lower index comes first.

    Args:
        distance: [N]; infinite: not in the list.
        positives: [P] indices.

    Returns:
        Ascending.
    """
    order = np.lexsort((positives, distance[positives]))
    mark, index = distance[positives][order], positives[order]
    left, right = (np.searchsorted(mark, distance, side=side) for side in ("left", "right"))
    before = np.bincount(right, minlength=len(mark) + 1).cumsum()[: len(mark)]  # nearer ones
    for item in np.flatnonzero((left < right) & np.isfinite(distance)):
        as_near = slice(left[item], right[item])
        before[as_near] += item < index[as_near]
    return before


def _squared(exact: Tensor, norms: Tensor, rows: np.ndarray) -> Tensor:
    """Squared distances [r, M] of some rows to all [M, D] float64, whose squared norms are [M]."""
    chosen = torch.from_numpy(rows).to(exact.device)
    product = matmul(exact[chosen], exact, norms / -2).mul_(-2)
    return product.add_(norms[chosen, None]).clamp_(min=0)


def _rows(n: int, wide: int | None = None) -> Iterator[np.ndarray]:
    step = max(1, _AT_ONCE // (wide or n))
    return (np.arange(at, min(at + step, n)) for at in range(0, n, step))
