"""Short codes of embeddings: what a search finds in them by bytes an image, with and without a second look.

Queries stay as they are (but for binary codes); the gallery is what its codes say. Distances to a code are those to the
embedding that it stands for, so ranks are exact and ties go by index, as in the plain search. What a code needs to
know (ranges, means, codebooks) it learns from the gallery, as an index would.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dml.retrieval.apart import Blocks, Part, take, within
from dml.retrieval.ranks import rank_blocks
from dml.retrieval.rows import Ranks
from dml.retrieval.tiles import squared_distances

_KNOWN = re.compile(r"float16|int8|binary|(pq|first)([1-9]\d*)")
_CENTROIDS = 256  # of each part of a product quantiser: a byte
_AT_ONCE = 2**23  # distances that are held
AddUp = Callable[[np.ndarray], np.ndarray]


def check_code(name: str) -> None:
    """Refuse what is no code.

    Raises:
        ValueError: names the key.
    """
    if not isinstance(name, str) or _KNOWN.fullmatch(name) is None:
        raise ValueError(
            f"evaluator.codes: {name} is no code: there are float16, int8, binary, pqM (M bytes, as pq64) and firstN "
            "(the first N dimensions, as first64)"
        )


def problem_of(name: str, dim: int, images: int) -> str | None:
    """Why embeddings of so many dimensions, in a gallery of so many images, cannot have this code; None: they can."""
    kind, number = _read(name)
    if kind == "pq" and dim % number:
        return f"evaluator.codes: {name} cuts embeddings into {number} equal parts, and {dim} dimensions have none"
    if kind == "pq" and images < _CENTROIDS:
        return f"evaluator.codes: {name} needs {_CENTROIDS} images to learn from, and the gallery has {images}"
    if kind == "first" and number > dim:
        return f"evaluator.codes: {name} is more than the {dim} dimensions that there are"
    return None


def bytes_of(name: str, dim: int) -> int:
    """Bytes of an image in this code."""
    kind, number = _read(name)
    return {"float16": 2 * dim, "int8": dim, "binary": -(-dim // 8), "pq": number, "first": 4 * number}[kind]


def _read(name: str) -> tuple[str, int]:
    found = _KNOWN.fullmatch(name)
    assert found is not None, name
    return found[1] or name, int(found[2] or 0)


def coded(name: str, x: Tensor, gallery: Tensor, share: tuple[int, int], add_up: AddUp) -> tuple[Tensor, Tensor]:
    """Queries [Q, D] as they are compared with the codes, and what the codes of a gallery [N, D] stand for.

    float16: each coordinate rounded. int8: to the nearest of 256 steps between the least and the largest of its
    dimension. binary: 1 where it is above the mean of its dimension, else -1, of the queries too (the squared distance
    is four times the number of bits that differ). pqM: each of M equal parts of the dimensions by the nearest of 256
    centroids (product quantisation, Jegou, Douze and Schmid 2011). firstN: the first N dimensions, brought to length 1.
    """
    kind, number = _read(name)
    if kind == "float16":
        return x, gallery.half().float()
    if kind == "int8":
        low, high = gallery.aminmax(dim=0)
        step = torch.where(high > low, (high - low) / 255, 1.0)
        return x, ((gallery - low) / step).round() * step + low
    if kind == "binary":
        mean = gallery.mean(dim=0, dtype=torch.float64).float()
        one, other = (torch.where(side > mean, 1.0, -1.0) for side in (x, gallery))
        return one, other
    if kind == "first":
        one, other = (torch.nn.functional.normalize(side[:, :number], dim=1, eps=1e-30) for side in (x, gallery))
        return one, other
    # One process learns, as threads add up in any order; the others are told.
    decoded = _quantised(gallery.numpy(force=True), number) if share[0] == 0 else np.zeros(gallery.shape, np.float32)
    return x, torch.from_numpy(add_up(decoded).astype(np.float32)).to(gallery.device)


def _quantised(x: np.ndarray, parts: int) -> np.ndarray:
    import faiss

    quantiser: Any = faiss.ProductQuantizer(x.shape[1], parts, 8)
    # Else FAISS learns from a sample of 256 images a centroid, and warns where there are fewer than 39.
    quantiser.cp.min_points_per_centroid = 1
    quantiser.train(x)
    return quantiser.decode(quantiser.compute_codes(x))


def code_blocks(
    name: str,
    x: Tensor,
    labels: np.ndarray,
    gallery: Tensor | None,
    gallery_labels: np.ndarray | None,
    own: np.ndarray | None,
    *,
    apart: Sequence[Part] | None,
    shortlist: int,
    share: tuple[int, int],
    add_up: AddUp,
) -> Iterator[tuple[str, Blocks]]:
    """The ranks in the code, and those where the nearest of the code are ranked again by the embeddings themselves.

    Args:
        name: of a code without a `problem_of`. The others are as for `rank_blocks`; embeddings of unit length.
        apart: the queries of each group with the images that they may find; None: all find all. Codes are those of the
            whole gallery.
        shortlist: how many are ranked again; the others follow as the code ranks them.

    Yields:
        (Its name with its bytes, some queries at a time with the ranks of their positives), twice.
    """
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels, own = x, labels, np.arange(len(x))
    title = f"{name}-{bytes_of(name, x.shape[1])}B"
    queries, codes = coded(name, x, gallery, share, add_up)

    parts = [Part(None, None, own)] if apart is None else apart

    def taken(part: Part, *sides: tuple[Any, ...]) -> Iterator[Any]:
        for values, index in zip(sides, (part.queries, part.rest), strict=True):
            yield from (take(one, index) for one in values)

    def ranked(part: Part) -> Blocks:
        asked, asked_labels, there, there_labels = taken(part, (queries, labels), (codes, gallery_labels))
        return rank_blocks(asked, asked_labels, there, there_labels, part.own, share=share, add_up=add_up)

    def ranked_again(part: Part) -> Blocks:
        x_, queries_, labels_, *there = taken(part, (x, queries, labels), (gallery, codes, gallery_labels))
        again = _Again(x_, queries_, labels_, there[0], there[1], there[2], part.own, shortlist)
        return again.blocks(ranked(part), share, add_up)

    yield title, within(parts, ranked)
    yield f"{title}-reranked", within(parts, ranked_again)


class _Again:
    """A second look at a shortlist: the nearest of the codes, ranked by the embeddings that are coded.

    Args:
        x: [Q, D] queries, and `queries` as they are compared with the codes. labels: [Q].
        gallery: [N, D], and `codes` what their codes stand for. gallery_labels: [N].
        own: [Q] where each query is in the gallery; -1: nowhere.
        shortlist: its length.
    """

    def __init__(
        self,
        x: Tensor,
        queries: Tensor,
        labels: np.ndarray,
        gallery: Tensor,
        codes: Tensor,
        gallery_labels: np.ndarray,
        own: np.ndarray | None,
        shortlist: int,
    ) -> None:
        self.x, self.queries, self.gallery = x, queries, gallery
        self.labels, self.gallery_labels = labels, gallery_labels
        self.own = np.full(len(x), -1) if own is None else own
        self.size = min(shortlist, len(gallery) - bool((self.own >= 0).any()))
        self.exact = codes.double()
        self.norms = self.exact.square().sum(dim=1)

    def blocks(
        self, in_code: Iterator[tuple[np.ndarray, Ranks]], share: tuple[int, int], add_up: AddUp
    ) -> Iterator[tuple[np.ndarray, Ranks]]:
        """The ranks of blocks of queries, of their ranks in the code."""
        step = max(1, _AT_ONCE // len(self.exact))
        for rows, before in in_code:
            ranks, last = np.zeros_like(before.ranks), before.counts.cumsum()
            mine = np.arange(len(rows))[share[0] :: share[1]]
            for part in (mine[at : at + step] for at in range(0, len(mine), step)):
                q = self.queries[torch.from_numpy(rows[part]).to(self.queries.device)].double()
                for i, distance in zip(part, (self.norms - 2 * q @ self.exact.T).numpy(force=True), strict=True):
                    found = self._places(rows[i], distance)
                    where = slice(last[i] - before.counts[i], last[i])
                    # The others follow as in the code.
                    ranks[where] = np.concatenate([found, np.maximum(before.ranks[where][len(found) :], self.size)])
            yield rows, Ranks(add_up(ranks), before.counts)

    def _places(self, query: int, distance: np.ndarray) -> np.ndarray:
        """Where the positives in the shortlist of a query stand, by its distances [N] to the codes."""
        if self.own[query] >= 0:
            distance[self.own[query]] = np.inf
        near = _nearest(distance, self.size)
        items = torch.from_numpy(near).to(self.gallery.device)
        apart = squared_distances(self.gallery[items], self.x[query]).numpy(force=True)
        return np.flatnonzero(self.gallery_labels[near[np.lexsort((near, apart))]] == self.labels[query])


def _nearest(distance: np.ndarray, size: int) -> np.ndarray:
    """The indices of the `size` least of distances [N]; of equal ones the lower index comes first."""
    reach = np.partition(distance, size - 1)[size - 1]
    found = np.flatnonzero(distance <= reach)
    return found[np.lexsort((found, distance[found]))][:size]
