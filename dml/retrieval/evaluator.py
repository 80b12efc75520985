"""Embeddings and labels -> a flat dict of retrieval metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dml.retrieval import metrics as m
from dml.retrieval.search import nearest, positive_ranks

METRICS = ("recall", "map@r", "r_precision", "map", "nmi")


class Evaluator:
    """Calls `evaluator(embeddings [N, D], labels [N])` -> {"recall@1": ..., "map@r": ..., ...}, all in [0, 1].

    Each item is searched among the others; with `gallery` and `gallery_labels`, each query among the gallery.
    Distances are Euclidean and exact. A query itself is excluded by its index. Ties: of two equally near items the one
    with the lower index comes first, on every backend.
    A query without positive (the only image of its class) counts as a miss in Recall@K, and the other rank metrics
    leave it out; in the gallery of the other queries, and among what NMI clusters, it stays.

    Args:
        ks: the Ks of Recall@K.
        metrics: which of recall, map@r, r_precision, map, nmi.
        normalize: L2-normalise the embeddings first, as the paper does for testing.

    Raises:
        ValueError: an unknown metric, a K below 1 or beyond the gallery, embeddings that are not finite or do not fit
            the labels, no query with a positive.
    """

    def __init__(
        self, *, ks: Sequence[int] = (1, 2, 4, 8), metrics: Sequence[str] = METRICS, normalize: bool = True
    ) -> None:
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"evaluator.metrics: {name} is none of {', '.join(METRICS)}")
        if not metrics:
            raise ValueError(f"evaluator.metrics=[] is not possible: choose of {', '.join(METRICS)}")
        if "recall" in metrics and not (
            isinstance(ks, Sequence) and ks and all(isinstance(k, int) and k >= 1 for k in ks)
        ):
            raise ValueError(f"evaluator.ks={ks} is not possible: it must be a list of whole numbers from 1 on")
        self.ks, self.metrics, self.normalize = tuple(ks), tuple(metrics), normalize

    def __call__(
        self, embeddings: Any, labels: Any, *, gallery: Any = None, gallery_labels: Any = None
    ) -> dict[str, float]:
        """Evaluate arrays or tensors; see the class."""
        x, y = self._prepare(embeddings, labels)
        if gallery is None:
            g, g_labels, own = x, y, np.arange(len(x))
        else:
            g, g_labels = self._prepare(gallery, gallery_labels)
            own = None
        classes, counts = np.unique(g_labels, return_counts=True)
        place = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        relevant = np.where(classes[place] == y, counts[place], 0) - (own is not None)
        if not (relevant > 0).any():
            raise ValueError("no query has another image of its class to find: retrieval metrics are undefined")

        results: dict[str, float] = {}
        need = max(self.ks) if "recall" in self.metrics else 0
        if {"map@r", "r_precision"} & set(self.metrics):
            need = max(need, int(relevant.max()))
        if need:
            neighbours, _ = nearest(x, g, need, own)
            hits = g_labels[neighbours] == y[:, None]
            if "recall" in self.metrics:
                results.update({f"recall@{k}": m.recall_at_k(hits, k) for k in self.ks})
            if "map@r" in self.metrics:
                results["map@r"] = m.map_at_r(hits, relevant)
            if "r_precision" in self.metrics:
                results["r_precision"] = m.r_precision(hits, relevant)
        if "map" in self.metrics:
            results["map"] = m.mean_average_precision(positive_ranks(x, y, g, g_labels, own))
        if "nmi" in self.metrics:
            results["nmi"] = m.nmi(x, y)
        return results

    def _prepare(self, embeddings: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        x = _to_numpy(embeddings).astype(np.float32, copy=False)
        y = _to_numpy(labels)
        if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
            raise ValueError(f"evaluation takes embeddings [N, D] and labels [N], not {x.shape} and {y.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"{int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} embeddings are NaN or infinite")
        if self.normalize:
            x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
        return x, y


def _to_numpy(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
