"""What may follow a search: the same embeddings ranked in another way, under names of its own."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from dml.retrieval.rows import Ranks


@runtime_checkable
class AfterSearch(Protocol):
    """Another ranking: of expanded queries (expansion.py), by mutual neighbours (reranking.py), or one of your own."""

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
        """Some queries [q] at a time, each once, with the ranks of their positives; arguments as of `rank_blocks`.

        Embeddings are of unit length. On several processes each may do its share, and `add_up` adds their arrays up.
        """
        ...
