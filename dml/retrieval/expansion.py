"""Query expansion and database augmentation: embeddings are moved towards their nearest neighbours, and searched again.

Both look at the gallery of the test, so what they give has names of its own and is no plain Recall@K.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from dml.retrieval.ranks import rank_blocks
from dml.retrieval.rows import Ranks
from dml.retrieval.search import Search

Weights = Literal["average", "alpha", "linear"]
_AT_ONCE = 2**22  # coordinates of neighbours that are held


class _Expansion:
    """Moves unit vectors x to unit(x + sum of w_i times the i-th of the n nearest); see the classes.

    Args:
        neighbours: n.
        weights: average: w_i = 1 (Chum et al. 2007); alpha: max(0, x . x_i) ** alpha (Radenovic et al. 2018);
            linear: (n - i) / n (Gordo et al. 2017), x itself being the 0th, so that the n-th has weight 0.
        alpha: of these.

    Raises:
        ValueError: neighbours is less than 1, weights are none of these, or alpha is negative.
    """

    def __init__(
        self,
        *,
        neighbours: Annotated[int, Ge(1)] = 10,
        weights: Weights = "alpha",
        alpha: Annotated[float, Ge(0)] = 3.0,
    ) -> None:
        if neighbours < 1:
            raise ValueError(f"neighbours={neighbours} is not possible: it must be at least 1")
        if weights not in get_args(Weights):
            raise ValueError(f"weights={weights} is not possible: it must be one of {', '.join(get_args(Weights))}")
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha} is not possible: it must be at least 0")
        self.neighbours, self.weights, self.alpha = neighbours, weights, alpha

    def expanded(self, x: Tensor, gallery: Tensor, own: np.ndarray | None) -> Tensor:
        """Unit vectors x [Q, D] moved towards their nearest in the gallery [N, D], without themselves (`own`)."""
        available = len(gallery) - (own is not None and bool((own >= 0).any()))
        if self.neighbours > available:
            raise ValueError(f"neighbours={self.neighbours} are more than the {available} that a query can have")
        among = gallery.numpy(force=True)
        near, _ = Search(among)(x.numpy(force=True), self.neighbours, own)
        moved = torch.empty_like(x)
        step = max(1, _AT_ONCE // (self.neighbours * x.shape[1]))
        for at in range(0, len(x), step):
            mine = x[at : at + step].double()
            theirs = gallery[torch.from_numpy(near[at : at + step]).to(gallery.device)].double()
            total = mine + (self._weights(mine, theirs)[:, :, None] * theirs).sum(dim=1)
            moved[at : at + step] = torch.nn.functional.normalize(total, dim=1, eps=1e-30)
        return moved

    def _weights(self, x: Tensor, near: Tensor) -> Tensor:
        """[q, n] of neighbours [q, n, D]."""
        if self.weights == "alpha":
            return (x[:, None] * near).sum(dim=2).clamp(min=0) ** self.alpha
        n = near.shape[1]
        one = torch.ones(near.shape[:2], dtype=x.dtype, device=x.device)
        if self.weights == "average":
            return one
        return one * (n - torch.arange(1, n + 1, device=x.device)) / n


class QueryExpansion(_Expansion):
    """Each query is moved towards its nearest images of the gallery; the gallery stays as it is.

    Without a gallery the queries are the gallery: query i and item i then differ, and i is left out by its index.
    """

    __doc__ += _Expansion.__doc__.partition("\n")[2]  # type: ignore[union-attr]

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
        """Some queries at a time with the ranks of their positives, as rank_blocks gives them."""
        if gallery is None or gallery_labels is None:
            gallery, gallery_labels, own = x, labels, np.arange(len(x))
        moved = self.expanded(x, gallery, own)
        return rank_blocks(moved, labels, gallery, gallery_labels, own, share=share, add_up=add_up)


class Augmentation(_Expansion):
    """Each item of the gallery is moved towards its own nearest there (database augmentation, Turcot and Lowe 2009).

    Without a gallery the queries are the gallery, so both sides move; with one the queries stay as they are.
    """

    __doc__ += _Expansion.__doc__.partition("\n")[2]  # type: ignore[union-attr]

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
        """Some queries at a time with the ranks of their positives, as rank_blocks gives them."""
        if gallery is None:
            moved = self.expanded(x, x, np.arange(len(x)))
            return rank_blocks(moved, labels, share=share, add_up=add_up)
        moved = self.expanded(gallery, gallery, np.arange(len(gallery)))
        return rank_blocks(x, labels, moved, gallery_labels, own, share=share, add_up=add_up)
