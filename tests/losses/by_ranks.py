"""Reference values of losses of average precision and recall, as by_anchors.py: loops over formulas in float64."""

import math
from typing import Any

import torch
from torch import Tensor

from tests.losses.by_anchors import cosines, sides
from tests.oracles import dot, mean


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t)) if t >= 0 else math.exp(t) / (1 + math.exp(t))


def smooth_ap(
    x: Tensor, labels: Tensor, temperature: float = 0.01, include_self: bool = False, anchors: int | None = None
) -> Tensor:
    s, terms = cosines(x), []
    for q, positives, negatives in sides(labels, anchors):
        if not positives:
            continue
        hits = [*positives, q] if include_self else positives
        precision = []
        for i in hits:
            own = [sigmoid((s[q][j] - s[q][i]) / temperature) for j in hits if j != i]
            all_ = own + [sigmoid((s[q][j] - s[q][i]) / temperature) for j in negatives]
            precision.append((1 + math.fsum(own)) / (1 + math.fsum(all_)))
        terms.append(1 - math.fsum(precision) / len(hits))
    return mean(terms)


def sup_ap(
    x: Tensor,
    labels: Tensor,
    tau: float = 0.01,
    rho: float = 100.0,
    delta: float = 0.05,
    offset: float | None = None,
    start: float = 0.5,
    include_self: bool = False,
    anchors: int | None = None,
) -> Tensor:
    s, terms = cosines(x), []
    beyond = sigmoid(delta / tau) + start if offset is None else offset

    def h(t: float) -> float:
        if t <= 0:
            return sigmoid(t / tau)
        return sigmoid(t / tau) + start if t <= delta else rho * (t - delta) + beyond

    for q, positives, negatives in sides(labels, anchors):
        if not positives:
            continue
        hits = [*positives, q] if include_self else positives
        precision = []
        for i in hits:
            rank = 1 + sum(s[q][j] >= s[q][i] for j in hits if j != i)
            precision.append(rank / (rank + math.fsum(h(s[q][j] - s[q][i]) for j in negatives)))
        terms.append(1 - math.fsum(precision) / len(hits))
    return mean(terms)


def fast_ap(x: Tensor, labels: Tensor, bins: int = 10, anchors: int | None = None) -> Tensor:
    s, terms, width = cosines(x), [], 4 / bins
    for q, positives, negatives in sides(labels, anchors):
        if not positives:
            continue
        value = running = of_all = 0.0
        for node in range(bins + 1):

            def filled(members: list[int], q=q, node=node) -> float:
                return math.fsum(max(0.0, 1 - abs(2 * (1 - s[q][j]) - node * width) / width) for j in members)

            own = filled(positives)
            running, of_all = running + own, of_all + own + filled(negatives)
            value += own * running / of_all if of_all > 0 else 0.0
        terms.append(1 - value / len(positives))
    return mean(terms)


def recall_at_k(
    x: Tensor,
    labels: Tensor,
    ks: tuple[int, ...] = (1, 2, 4, 8, 16),
    rank_temperature: float = 0.01,
    k_temperature: float = 1.0,
    count_query: bool = False,
    anchors: int | None = None,
    normalize: bool = True,
) -> Tensor:
    rows = x.detach().double().tolist()
    s = cosines(x) if normalize else [[dot(a, b) for b in rows] for a in rows]
    terms = []
    for q, positives, negatives in sides(labels, anchors):
        if not positives:
            continue
        ranks = []
        for i in positives:
            members = [*positives, *negatives, *([q] if count_query else [])]
            ranks.append(1 + math.fsum(sigmoid((s[q][j] - s[q][i]) / rank_temperature) for j in members if j != i))
        for each in ks:
            k = min(each, len(labels))
            found = math.fsum(sigmoid((k - rank) / k_temperature) for rank in ranks)
            terms.append(1 - min(k, found) / min(k, len(positives)))
    return mean(terms).to(torch.float64)


def roadmap(
    x: Tensor,
    labels: Tensor,
    weight: float = 0.5,
    pos_margin: float = 0.9,
    neg_margin: float = 0.6,
    anchors: int | None = None,
    **of_sup_ap: Any,
) -> Tensor:
    s, pull, push = cosines(x), [], []
    for i, positives, negatives in sides(labels, anchors):
        pull += [max(0.0, pos_margin - s[i][p]) for p in positives]
        push += [max(0.0, s[i][n] - neg_margin) for n in negatives]
    means = [math.fsum(each) / max(1, sum(e > 0 for e in each)) for each in (pull, push)]
    return (1 - weight) * sup_ap(x, labels, **of_sup_ap, anchors=anchors) + weight * math.fsum(means)
