"""Embeddings and labels -> a flat dict of retrieval metrics."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge, Interval, MinLen
from torch import Tensor

from dml.retrieval import metrics as m
from dml.retrieval.after_search import AfterSearch
from dml.retrieval.apart import Blocks, Part, parts_of, searched_apart
from dml.retrieval.by_class import by_class
from dml.retrieval.codes import check_code, code_blocks, problem_of
from dml.retrieval.labels import class_numbers
from dml.retrieval.ranks import positive_counts, rank_blocks
from dml.retrieval.rows import Ranks
from dml.retrieval.search import searched_blocks
from dml.retrieval.sides import common_unit, row_sums
from dml.retrieval.tiles import squared_distances

Metric = Literal["recall", "precision", "map@r", "r_precision", "map", "mrr", "nmi", "ami"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_USUAL: tuple[Metric, ...] = ("recall", "map@r", "r_precision", "map", "mrr", "nmi")
_CLUSTERED = ("nmi", "ami")
Backend = Literal["ranks", "faiss"]
BACKENDS = get_args(Backend)


class Evaluator:
    """Calls `evaluator(embeddings [N, D], labels [N])` -> {"recall@1": ..., "map@r": ..., ...}, all in [0, 1].

    With `return_per_class=True` -> that, and {"recall@1": {class: value, ...}, ...} (by_class.py).

    Each item is searched among the others; with `gallery` and `gallery_labels`, each query among the gallery.
    Distances are Euclidean and exact. A query itself is excluded by its index; where queries are in the gallery too,
    `own_index` says where. Ties: of two equally near items the one with the lower index comes first, on every backend
    and device.
    A query without positive (the only image of its class) counts as a miss in Recall@K and Precision@K, and the other
    rank metrics leave it out; in the gallery of the other queries, and among what NMI clusters, it stays.

    Args:
        ks: the Ks of Recall@K and Precision@K.
        metrics: which of recall, precision, map@r, r_precision, map, mrr, nmi, ami.
        normalize: L2-normalise the embeddings first, as the paper does for testing.
        backend: ranks counts what comes before each positive (ranks.py); faiss looks positives up in lists of
            neighbours. The numbers are the same.
        nmi_restarts, nmi_seed: of the k-means clustering that NMI and AMI compare with the classes.
        also: other rankings by name, whose rank metrics are added as NAME/recall@1 and so on. They look at the gallery
            that is tested, so the plain metrics stay beside them.
        codes: float16, int8, binary, pqM, firstN: short codes of the gallery (codes.py), whose rank metrics are added
            as pq64-64B/recall@1 and so on, with the bytes of an image; pq64-64B-reranked/... where the nearest
            `shortlist` of the code are ranked again by the embeddings.

    Attributes:
        per_query: of the last call, what the metrics are means of: first_rank [Q] int32, where the nearest positive of
            each query stands (from 0; -1: the query has none), from which Recall@K and MRR follow; of the other rank
            metrics that were asked for, by their names, the value of each query [Q] float32 (NaN: it has no positive).

    Raises:
        ValueError: an unknown metric or backend, a K below 1 or beyond the gallery, embeddings that are not finite or
            do not fit the labels, labels that are neither whole numbers nor words, no query with a positive, a gallery
            without labels or labels without a gallery, an own_index that does not fit.
    """

    def __init__(
        self,
        *,
        ks: Annotated[Sequence[Annotated[int, Ge(1)]], MinLen(1)] = (1, 2, 4, 8),
        metrics: Annotated[Sequence[Metric], MinLen(1)] = _USUAL,
        normalize: bool = True,
        backend: Backend = "ranks",
        nmi_restarts: Annotated[int, Ge(1)] = 3,
        nmi_seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0,
        also: dict[str, AfterSearch] = {},  # noqa: B006 (read only)
        codes: Sequence[str] = (),
        shortlist: Annotated[int, Ge(1)] = 100,
    ) -> None:
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"evaluator.metrics: {name} is none of {', '.join(METRICS)}")
        if not metrics:
            raise ValueError(f"evaluator.metrics=[] is not possible: choose of {', '.join(METRICS)}")
        wanted = list(ks) if isinstance(ks, Sequence | np.ndarray) else []
        possible = all(isinstance(k, Integral) and not isinstance(k, bool) and k >= 1 for k in wanted)
        if {"recall", "precision"} & {*metrics} and not (wanted and possible):
            raise ValueError(f"evaluator.ks={ks} is not possible: it must be a list of whole numbers of at least 1")
        if backend not in BACKENDS:
            raise ValueError(f"evaluator.backend={backend} is not possible: it must be one of {', '.join(BACKENDS)}")
        if nmi_restarts < 1:
            raise ValueError(f"evaluator.nmi_restarts={nmi_restarts} is not possible: it must be at least 1")
        if not 0 <= nmi_seed < 2**32:
            raise ValueError(f"evaluator.nmi_seed={nmi_seed} is not possible: it must be from 0 to {2**32 - 1}")
        for key, given in (("also", also), ("codes", codes)):
            if given and not normalize:
                raise ValueError(f"evaluator.{key} needs evaluator.normalize=true: it takes embeddings of length 1")
        for code in codes:
            check_code(code)
        if shortlist < 1:
            raise ValueError(f"evaluator.shortlist={shortlist} is not possible: it must be at least 1")
        self.also, self.codes, self.shortlist = dict(also), tuple(codes), shortlist
        self.ks = tuple(int(k) for k in wanted) if possible else ()
        self.metrics, self.normalize = tuple(metrics), normalize
        self.backend, self.nmi_restarts, self.nmi_seed = backend, nmi_restarts, nmi_seed
        self.per_query: dict[str, np.ndarray] = {}

    def __call__(
        self,
        embeddings: Any,
        labels: Any,
        *,
        gallery: Any = None,
        gallery_labels: Any = None,
        own_index: Any = None,
        plain: bool = False,
        groups: Any = None,
        gallery_groups: Any = None,
        share: tuple[int, int] = (0, 1),
        add_up: Callable[[np.ndarray], np.ndarray] = lambda values: values,
        progress: Callable[[int, int], None] = lambda done, of: None,
        return_per_class: bool = False,
    ) -> Any:
        """Evaluate arrays or tensors; see the class.

        Args:
            embeddings: [N, D], on the device that is to do the work. labels: [N].
            gallery, gallery_labels: where to search, if not among the others: [G, D] and [G].
            own_index: [N] whole numbers: where in the gallery the image of each query is, which it does not find; -1:
                nowhere. None: nowhere for all. If it is so for all, a warning says when the rows look otherwise. Other
                rows of the gallery that equal a query's are found.
            plain: leave out what `also` and `codes` name.
            groups, gallery_groups: [N] and [G], what each image is one of (a camera, a session): a query is searched
                among the images of other groups only, also by what `also` and `codes` name. None: among all.
            share: (r, n): this is process r of n, all of which hold the same embeddings and share the work.
            add_up: adds an array of all processes up.
            progress: of the clustering, which takes longest: is told how many iterations of how many are done.
            return_per_class: return a second dict too: of each rank metric its mean over the queries of each class.
        """
        if (gallery is None) != (gallery_labels is None):
            given, missing = ("gallery", "gallery_labels") if gallery_labels is None else ("gallery_labels", "gallery")
            raise ValueError(f"evaluation with {given}= needs {missing}= too")
        x = self._prepare(embeddings, "embeddings")
        if gallery is None:
            g, g_labels, (y,) = None, None, class_numbers(labels)
        else:
            g = self._prepare(gallery, "gallery")
            y, g_labels = class_numbers(labels, gallery_labels)
        for what, rows, numbers in (("labels", x, y), ("gallery_labels", g, g_labels)):
            if rows is not None and numbers is not None and len(rows) != len(numbers):
                raise ValueError(f"evaluation takes as many {what} as embeddings, not {len(numbers)} for {len(rows)}")
        own = _own_index(own_index, x, g)
        images, apart = len(x if g is None else g), None
        available = images - int(g is None or (own is not None and bool((own >= 0).any())))
        if groups is not None:
            apart = parts_of(groups, groups if g is None else gallery_groups, len(x), images, own)
            available = min(len(part.rest) - (part.own is not None) for part in apart if part.rest is not None)
        if {"recall", "precision"} & {*self.metrics} and max(self.ks) > available:
            raise ValueError(f"evaluator.ks asks for {max(self.ks)} neighbours, but a query can have 1 to {available}")
        for name in () if plain else self.codes:
            if said := problem_of(name, x.shape[1], images):
                raise ValueError(said)
        positives = positive_counts(y, g_labels, own)
        if apart is not None:
            among_labels = y if g_labels is None else g_labels
            for part in apart:
                positives[part.queries] = positive_counts(y[part.queries], among_labels[part.rest], part.own)
        if not positives.any():
            raise ValueError("no query has another image of its class to find: retrieval metrics are undefined")
        results: dict[str, float] = {}
        self.per_query = {}
        if wanted := set(self.metrics) - {*_CLUSTERED}:
            if unit := common_unit(*([x] if g is None else [x, g])):
                # Equal distances of whole numbers are equal however they are added up.
                ranked, among = x / unit, None if g is None else g / unit
            else:
                ranked, among = x, g
            search = partial(self._blocks, wanted=wanted, positives=positives, share=share, add_up=add_up)
            blocks = searched_apart(search, apart, ranked, y, among, g_labels, own)
            results, self.per_query = self._of_ranks(blocks, positives > 0)
        if clustered := [name for name in _CLUSTERED if name in self.metrics]:
            # One process clusters; what the others add is nothing.
            values: dict[Any, float] = dict.fromkeys(clustered, 0.0)
            if share[0] == 0:
                values = m.of_clusters(clustered, _numpy(x), y, self.nmi_seed, self.nmi_restarts, progress)
            results |= zip(clustered, add_up(np.array([values[name] for name in clustered])).tolist(), strict=True)
        for name, blocks in () if plain else self._further(apart, x, y, g, g_labels, own, share=share, add_up=add_up):
            found, _ = self._of_ranks(blocks, positives > 0)
            results |= {f"{name}/{metric}": value for metric, value in found.items()}
        if return_per_class:
            return results, by_class(self.per_query, results, labels, y)
        return results

    def _blocks(
        self,
        ranked: Tensor,
        y: np.ndarray,
        among: Tensor | None,
        g_labels: np.ndarray | None,
        own: np.ndarray | None,
        *,
        wanted: set[Any],
        positives: np.ndarray,
        share: tuple[int, int],
        add_up: Callable[[np.ndarray], np.ndarray],
    ) -> Blocks:
        """The ranks of some queries at a time, by their indices."""
        if self.backend == "ranks":
            only = wanted <= {"recall", "mrr"}
            return rank_blocks(ranked, y, among, g_labels, own, nearest_only=only, share=share, add_up=add_up)
        depth = None if wanted & {"map", "mrr"} else max(*self.ks, int(positives.max()))
        rows = None if among is None else _numpy(among)
        return searched_blocks(_numpy(ranked), y, rows, g_labels, own, depth=depth)

    def _further(self, apart: Sequence[Part] | None, *sides: Any, **given: Any) -> Iterator[tuple[str, Blocks]]:
        """The names and the ranks of what is searched beside the embeddings themselves."""
        for name, other in self.also.items():
            yield name, searched_apart(other.blocks, apart, *sides, **given)
        for name in self.codes:
            yield from code_blocks(name, *sides, apart=apart, shortlist=self.shortlist, **given)

    def _of_ranks(
        self, blocks: Iterable[tuple[np.ndarray, Ranks]], some: np.ndarray
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The rank metrics and `per_query`, of the ranks of some queries at a time; `some` [Q] have a positive."""
        of_each: dict[str, Callable[[Ranks], np.ndarray]] = {
            f"precision@{k}": partial(m.precisions_at_k, k=k) for k in self.ks if "precision" in self.metrics
        }
        of_each |= {name: function for name, function in m.OF_EACH.items() if name in self.metrics}
        each = {name: np.empty(len(some)) for name in of_each}
        nearest = np.full(len(some), np.iinfo(np.int64).max)
        for queries, ranks in blocks:
            found = queries[ranks.counts > 0]
            nearest[found] = m.nearest(ranks)
            for name, values in each.items():
                values[found] = of_each[name](ranks)
        per_query = {"first_rank": np.where(some, nearest, -1).astype(np.int32)} | {
            name: np.where(some, values, np.nan).astype(np.float32) for name, values in each.items() if name != "mrr"
        }
        recalls = {f"recall@{k}": float((nearest < k).sum() / len(some)) for k in self.ks if "recall" in self.metrics}
        # In the order of the queries, so that the sums are the same whatever the blocks.
        means = {
            name: float(values[some].sum() / (len(some) if "@" in name and name != "map@r" else some.sum()))
            for name, values in each.items()
        }
        return {**recalls, **means}, per_query

    def _prepare(self, embeddings: Any, what: str) -> Tensor:
        if not isinstance(embeddings, Tensor):  # torch takes no negative strides and no foreign byte order
            embeddings = torch.from_numpy(np.array(embeddings, dtype=np.float32, order="C"))
        x = embeddings.detach().to(torch.float32)
        x = x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64
        if x.ndim != 2 or not x.numel():
            raise ValueError(f"evaluation takes embeddings [N, D] and labels [N], not {what} {list(x.shape)}")
        broken = sum(int((~part.isfinite()).any(dim=1).sum()) for part in x.split(1024))
        if broken:
            raise ValueError(f"{broken} of {len(x)} embeddings are NaN or infinite")
        return normalized(x) if self.normalize else x


def _own_index(own_index: Any, x: Tensor, g: Tensor | None) -> np.ndarray | None:
    """Checked, as [Q] int64; None if no query is in the gallery. Warns of queries that seem to be there unsaid."""
    own = None if own_index is None else _checked(own_index, x, g)
    if own is not None and (own >= 0).any():
        return own
    if g is not None and x.shape == g.shape and torch.equal(x, g):
        warnings.warn(
            f"queries and gallery are the same {len(x)} embeddings, so each query finds itself: leave the gallery "
            "out to search each among the others, or give own_index=, where each query is in the gallery",
            stacklevel=3,
        )
    elif g is not None and g.shape[1] == x.shape[1]:
        sums = row_sums(x)
        if len(np.unique(sums)) > 1 and np.isin(sums, row_sums(g)).all():  # all equal: collapsed
            warnings.warn(
                f"each of the {len(x)} queries has an equal embedding in the gallery: if that is its own image, it "
                "finds itself, and own_index= has to say where in the gallery it is",
                stacklevel=3,
            )
    return None


def _checked(own_index: Any, x: Tensor, g: Tensor | None) -> np.ndarray:
    if g is None:
        raise ValueError("evaluation with own_index= needs gallery= too: without one, a query never finds itself")
    own = np.asarray(own_index.tolist() if isinstance(own_index, Tensor) else own_index)
    if own.shape != (len(x),) or own.dtype.kind not in "iu":
        raise ValueError(f"own_index must be {len(x)} whole numbers, one a query, not {own.dtype} {list(own.shape)}")
    if own.min() < -1 or own.max() >= len(g):
        raise ValueError(f"own_index must be from -1 (none) to {len(g) - 1}, not {own.min()} to {own.max()}")
    return own.astype(np.int64)


def normalized(x: Tensor) -> Tensor:
    """Rows of length 1 (zeros stay zeros), by float64 steps that give the same bits on every device."""
    normalized = torch.empty_like(x)
    for part, into in zip(x.split(1024), normalized.split(1024), strict=True):
        lengths = squared_distances(part, torch.zeros_like(part)).sqrt()
        into.copy_(part / lengths.masked_fill(lengths == 0, 1)[:, None])
    return normalized


def _numpy(x: Tensor) -> np.ndarray:
    return x.numpy(force=True)
