"""Reference value of the clustering loss, as by_anchors.py: every candidate is tried with loops in float64."""

import math
from collections import Counter

import torch
from torch import Tensor

from tests.losses.by_anchors import spheric
from tests.oracles import Matrix, distances

TIE = 1e-11  # what differs by less is equal, and the first is taken


def entropy(counts: list[int]) -> float:
    total = sum(counts)
    return -math.fsum(n / total * math.log(n / total) for n in counts)


def nmi(classes: list[int], clusters: list[int]) -> float:
    if len(set(classes)) == len(set(clusters)) == 1:
        return 1.0
    own, others = (entropy([*Counter(each).values()]) for each in (classes, clusters))
    if own == 0 or others == 0:
        return 0.0
    both = entropy([*Counter(zip(classes, clusters, strict=True)).values()])
    return max(0.0, own + others - both) / math.sqrt(own * others)


def nearest(d: Matrix, medoids: list[int]) -> list[int]:
    """For each point the place of its medoid among them."""
    found = []
    for i, row in enumerate(d):
        least = min(row[s] for s in medoids)
        places = [p for p, s in enumerate(medoids) if row[s] <= least + TIE]
        found.append(medoids.index(i) if i in medoids else places[0])
    return found


def first_best(scores: list[float], m: int) -> int:
    return next(i for i, score in enumerate(scores) if score >= max(scores) - m * TIE)


def clustering(
    x: Tensor,
    labels: Tensor,
    gamma: float = 1.0,
    pam_iterations: int = 5,
    gamma_decay: float = 1.0,
    decay_steps: int | None = None,
) -> Tensor:
    """Of the first step, in which gamma has not decayed."""
    d, classes = distances(spheric(x)), labels.tolist()
    m, medoids = len(d), []
    for _ in set(classes):
        candidates = [i for i in range(m) if i not in medoids]
        scores = []
        for i in candidates:
            facility = -math.fsum(min(row[s] for s in [*medoids, i]) for row in d)
            scores.append(facility + gamma * (1 - nmi(classes, nearest(d, [*medoids, i]))))
        medoids.append(candidates[first_best(scores, m)])
    for _ in range(pam_iterations):
        clusters = nearest(d, medoids)
        for k in range(len(medoids)):
            members, scores = [i for i in range(m) if clusters[i] == k], []
            for i in members:
                changed = [*medoids[:k], i, *medoids[k + 1 :]]
                inside = math.fsum(d[i][j] for j in members)
                scores.append(-inside + gamma * (1 - nmi(classes, nearest(d, changed))))
            medoids[k] = members[first_best(scores, m)]
    clusters = nearest(d, medoids)
    facility = -math.fsum(d[i][medoids[k]] for i, k in enumerate(clusters))
    best = 0.0
    for own in set(classes):
        members = [i for i, other in enumerate(classes) if other == own]
        best += max(-math.fsum(d[i][j] for j in members) for i in members)
    value = facility + gamma * (1 - nmi(classes, clusters)) - best
    return torch.tensor(max(0.0, value), dtype=torch.float64)
