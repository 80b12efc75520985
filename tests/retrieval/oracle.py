"""The ranking by brute force in float64, and the metrics as loops over it.

Shares no code with the library: every query is compared with every item, coordinate by coordinate, the whole gallery
is sorted by (distance, index), and the query itself is taken out by its index.
"""

import math

import numpy as np


def embeddings_and_labels(kind, n, dim, classes, seed=0):
    """Data of a kind: [n, dim] float32 and [n] labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim))
    if kind == "grid":  # whole numbers: full of duplicates and equal distances
        x = np.round(x)
    elif kind == "two_values":  # far more items at one distance than any search proposes
        x = np.tile(rng.integers(0, 2, (n, 1)), (1, dim))
    elif kind == "twins":
        x[n // 2 :] = x[: n - n // 2]
    elif kind == "identical":
        x[:] = x[0]
    else:
        assert kind == "random"
    return x.astype(np.float32), rng.integers(0, classes, n)


def normalised(x):
    x = np.asarray(x, dtype=np.float64)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def ranking(queries, gallery, own_index=None):
    """Gallery indices, nearest first, and their distances: [Q, N], or [Q, N - 1] without the queries themselves.

    Where some of own_index are -1, no index, both are lists of arrays.
    """
    queries, gallery = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (queries, gallery))
    order, distances = [], []
    for row, query in enumerate(queries):
        distance = np.sqrt(((gallery - query) ** 2).sum(axis=1))
        ranked = np.argsort(distance, kind="stable")
        if own_index is not None:
            ranked = ranked[ranked != own_index[row]]
        order.append(ranked)
        distances.append(distance[ranked])
    if own_index is not None and -1 in own_index:
        return order, distances
    return np.array(order), np.array(distances)


def ranks(order, query_labels, gallery_labels):
    """The places of each query's positives in the ranking."""
    return [np.flatnonzero(gallery_labels[row] == label) for row, label in zip(order, query_labels, strict=True)]


def scores(order, query_labels, gallery_labels, ks):
    """All rank metrics, query by query."""
    recalled = {k: [] for k in ks}
    precisions, averages_at_r, averages, reciprocal = [], [], [], []
    for row, label in zip(order, query_labels, strict=True):
        hits = [bool(gallery_labels[i] == label) for i in row]
        for k in ks:
            recalled[k].append(any(hits[:k]))
        r = sum(hits)
        if r == 0:
            continue
        precision_at = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
        precisions.append(sum(hits[:r]) / r)
        averages_at_r.append(sum(precision_at[i] for i in range(r) if hits[i]) / r)
        reciprocal.append(1 / (1 + hits.index(True)))
        averages.append(sum(precision_at[i] for i in range(len(hits)) if hits[i]) / r)

    def mean(values):
        return math.fsum(values) / len(values)

    return {
        **{f"recall@{k}": mean(recalled[k]) for k in ks},
        "map@r": mean(averages_at_r),
        "r_precision": mean(precisions),
        "map": mean(averages),
        "mrr": mean(reciprocal),
    }
