"""Reference values, written as plain loops over the formulas of the NRA paper (arXiv:1909.09427).

The library computes the same numbers with batched tensor operations. These loops share no code with it and
always work in float64, so an error has to be made twice, in two different ways, to stay unseen.
Each loss oracle takes embeddings [m, d] and labels [m] and returns a float64 scalar without a gradient.
"""

import math
from collections.abc import Callable
from itertools import combinations, permutations

import torch
from torch import Tensor

Matrix = list[list[float]]


def distances(embeddings: Tensor) -> Matrix:
    """The L2 distances D_ij of all rows (section II of the paper), from the coordinate differences."""
    rows = embeddings.detach().double().tolist()
    return [[math.dist(a, b) for b in rows] for a in rows]


def mean(terms: list[float]) -> Tensor:
    """The mean of the terms; zero if there are none, because a batch without valid pairs has no loss."""
    return torch.tensor(math.fsum(terms) / len(terms) if terms else 0.0, dtype=torch.float64)


def log_sum_exp(exponents: list[float]) -> float:
    """log(sum(exp(x))), with the largest x taken out so that large exponents do not overflow."""
    top = max(exponents)
    return top + math.log(math.fsum(math.exp(x - top) for x in exponents))


def transfer(rank: float, alpha: float) -> float:
    """Equation 10. Even alphas continue it smoothly where finite differences leave [0, 1]."""
    return 0.5 * (2 * rank) ** alpha if rank < 0.5 else 1 - 0.5 * (2 * (1 - rank)) ** alpha


def nra_ranges(embeddings: Tensor) -> list[tuple[float, float]]:
    """Equation 6: for each anchor the smallest and the largest distance to another member of the batch."""
    dist = distances(embeddings)
    others = [row[:i] + row[i + 1 :] or [0.0] for i, row in enumerate(dist)]
    return [(min(row), max(row)) for row in others]


def nra(
    embeddings: Tensor,
    labels: Tensor,
    alpha: float = 4.0,
    epsilon: float = 1e-4,
    ranges: list[tuple[float, float]] | None = None,
    anchors: int | None = None,
) -> Tensor:
    """Equations 5 to 13, of the first `anchors` samples as anchors.

    Given `ranges` take the place of equation 6, to hold D_min and D_max constant.
    """
    dist, classes, terms = distances(embeddings), labels.tolist(), []
    if ranges is None:
        ranges = nra_ranges(embeddings)
    for i, own in enumerate(classes[:anchors]):
        positives = [dist[i][j] for j, other in enumerate(classes) if j != i and other == own]  # eq. 5
        negatives = [dist[i][j] for j, other in enumerate(classes) if other != own]
        if not positives or not negatives:
            continue
        low, high = ranges[i]
        rank_positive = (max(positives) - low) / (high - low) if high > low else 0.0  # eq. 7 and 9
        rank_negative = (min(negatives) - low) / (high - low) if high > low else 0.0
        similarity_positive = 1 - transfer(rank_positive, alpha)  # eq. 12
        similarity_negative = 1 - transfer(rank_negative, alpha)
        terms.append(-math.log(similarity_positive + epsilon) - math.log(1 - similarity_negative + epsilon))
    return mean(terms)


def contrastive(
    embeddings: Tensor, labels: Tensor, margin: float = 1.0, hinge: str = "distance", anchors: int | None = None
) -> Tensor:
    """Equation 1, as the mean over all unordered pairs; given anchors, over all pairs of one of these and another."""
    dist, classes, terms = distances(embeddings), labels.tolist(), []
    pairs = combinations(range(len(classes)), 2) if anchors is None else permutations(range(len(classes)), 2)
    for i, j in pairs:
        if anchors is not None and i >= anchors:
            continue
        squared = max(0.0, margin - dist[i][j] ** 2) if hinge == "squared" else max(0.0, margin - dist[i][j]) ** 2
        terms.append(dist[i][j] ** 2 if classes[i] == classes[j] else squared)
    return mean(terms)


def triplet(
    embeddings: Tensor, labels: Tensor, margin: float = 1.0, mining: str = "semi_hard", anchors: int | None = None
) -> Tensor:
    """Equation 2, for the triplets that the mining chooses, of the first `anchors` samples as anchors."""
    dist, classes = distances(embeddings), labels.tolist()
    m = len(classes)
    chosen: list[tuple[float, float]] = []
    for a in range(m if anchors is None else anchors):
        positives = [dist[a][p] for p in range(m) if p != a and classes[p] == classes[a]]
        negatives = [dist[a][n] for n in range(m) if classes[n] != classes[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            chosen += [(positive, negative) for positive in positives for negative in negatives]
        elif mining == "hard":
            chosen.append((max(positives), min(negatives)))
        else:
            for positive in positives:
                farther = [negative for negative in negatives if negative > positive]
                chosen.append((positive, min(farther) if farther else max(negatives)))
    return mean([max(0.0, positive**2 - negative**2 + margin) for positive, negative in chosen])


def lifted(embeddings: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Equation 3, over all unordered positive pairs of the batch that have a negative."""
    dist, classes, terms = distances(embeddings), labels.tolist(), []
    for i, j in combinations(range(len(classes)), 2):
        negatives = [k for k, other in enumerate(classes) if other != classes[i]]
        if classes[i] != classes[j] or not negatives:
            continue
        exponents = [margin - dist[i][k] for k in negatives] + [margin - dist[j][k] for k in negatives]
        terms.append(max(0.0, log_sum_exp(exponents) + dist[i][j]) ** 2 / 2)
    return mean(terms)


def npair(embeddings: Tensor, labels: Tensor, l2_weight: float = 0.0) -> Tensor:
    """Equation 4, for the first two members of each class, plus the weighted squared lengths of both."""
    rows, classes = embeddings.detach().double().tolist(), labels.tolist()
    members = {own: [rows[i] for i, other in enumerate(classes) if other == own] for own in classes}
    pairs = [tuple(group[:2]) for group in members.values() if len(group) > 1]
    terms = []
    for i, (anchor, positive) in enumerate(pairs):
        others = [other for j, (_, other) in enumerate(pairs) if j != i]
        terms.append(log_sum_exp([0.0] + [dot(anchor, other) - dot(anchor, positive) for other in others]))
    lengths = mean([dot(a, a) for a, _ in pairs]) + mean([dot(p, p) for _, p in pairs])
    return mean(terms) + 0.25 * l2_weight * lengths


def dot(a: list[float], b: list[float]) -> float:
    """The inner product of two vectors."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cross_entropy(embeddings: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The mean of -log(softmax(W x + b)) at the own class of each sample."""
    rows, biases, weights = embeddings.detach().double().tolist(), bias.tolist(), weight.tolist()
    terms = []
    for row, own in zip(rows, labels.tolist(), strict=True):
        logits = [dot(row, w) + b for w, b in zip(weights, biases, strict=True)]
        terms.append(log_sum_exp(logits) - logits[own])
    return mean(terms)


def numerical_gradient(function: Callable[[Tensor], Tensor], point: Tensor, step: float) -> Tensor:
    """The gradient of a scalar function by central differences, one coordinate after the other."""
    gradient = torch.zeros_like(point, dtype=torch.float64)
    for index in range(point.numel()):
        shift = torch.zeros(point.numel(), dtype=torch.float64)
        shift[index] = step
        up, down = (function(point.detach().double() + s * shift.view_as(point)) for s in (1, -1))
        gradient.view(-1)[index] = (up - down) / (2 * step)
    return gradient
