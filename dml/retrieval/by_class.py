"""Metrics of each class: means over its queries."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor


def by_class(
    per_query: Mapping[str, np.ndarray], metrics: Iterable[str], labels: Any, numbers: np.ndarray
) -> dict[str, dict[Any, float]]:
    """Rank metric -> label -> mean over the queries of that label.

    As in the whole, a query without a positive counts 0 in Recall@K and Precision@K, and others leave it out; of a
    class of which no query has one their value is NaN.

    Args:
        per_query: what `Evaluator.per_query` holds.
        metrics: names of metrics; those that are not of queries are passed over.
        labels: [Q] as they were given.
        numbers: [Q] from 0, equal where the labels are.
    """
    names = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    classes, first = np.unique(numbers, return_index=True)
    counts = np.bincount(numbers, minlength=int(classes[-1]) + 1)
    found = {}
    for metric in metrics:
        values = _of_queries(per_query, metric)
        if values is None:
            continue
        known = ~np.isnan(values)
        sums = np.bincount(numbers[known], weights=values[known], minlength=len(counts))
        of = np.bincount(numbers[known], minlength=len(counts))
        means = np.divide(sums, of, out=np.full(len(sums), np.nan), where=of > 0)
        found[metric] = {names[i]: float(means[c]) for c, i in zip(classes, first, strict=True)}
    return found


def _of_queries(per_query: Mapping[str, np.ndarray], metric: str) -> np.ndarray | None:
    """[Q] float64; NaN where the metric leaves a query out."""
    first, (name, _, k) = per_query.get("first_rank"), metric.partition("@")
    if first is None:
        return None
    if name == "recall":
        return ((first >= 0) & (first < int(k))).astype(float)
    if metric == "mrr":
        return np.where(first >= 0, 1 / (first + 1.0).clip(min=1), np.nan)
    if metric not in per_query:
        return None
    values = per_query[metric].astype(float)
    return np.nan_to_num(values) if name == "precision" else values
