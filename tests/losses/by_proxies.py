"""Reference values of losses that own weights of the classes: loops over their formulas in float64.

Each takes the loss, for its weights, embeddings [m, d] and labels [m], and the loss's options.
"""

import math

import torch
from torch import Tensor, nn

from tests import oracles
from tests.losses.by_anchors import log_one_plus, spheric
from tests.oracles import Matrix, dot, log_sum_exp, mean


def cosines_to(embeddings: Tensor, weights: Tensor) -> Matrix:
    return [[dot(z, w) for w in spheric(weights).tolist()] for z in spheric(embeddings).tolist()]


def cross_entropy(loss: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return oracles.cross_entropy(x, labels, loss.classifier.weight, loss.classifier.bias)


def of_logits(logits: Matrix, labels: Tensor) -> Tensor:
    """The mean softmax cross entropy."""
    return mean([log_sum_exp(row) - row[own] for row, own in zip(logits, labels.tolist(), strict=True)])


def normalized_softmax(loss: nn.Module, x: Tensor, labels: Tensor, temperature: float = 0.05) -> Tensor:
    return of_logits([[s / temperature for s in row] for row in cosines_to(x, loss.weight)], labels)


def cos_face(loss: nn.Module, x: Tensor, labels: Tensor, margin: float = 0.35, scale: float = 64.0) -> Tensor:
    rows = cosines_to(x, loss.weight)
    for row, own in zip(rows, labels.tolist(), strict=True):
        row[own] -= margin
    return of_logits([[scale * s for s in row] for row in rows], labels)


def arc_face(loss: nn.Module, x: Tensor, labels: Tensor, margin: float = 0.5, scale: float = 64.0) -> Tensor:
    rows, weights = cosines_to(x, loss.weight), spheric(loss.weight)
    for row, own, z in zip(rows, labels.tolist(), spheric(x), strict=True):
        # By its half's tangent, exact for small and large angles; of a row that is no unit vector by its cosine.
        angle = 2 * math.atan2(float((z - weights[own]).norm()), float((z + weights[own]).norm()))
        angle = angle if z.norm() ** 2 >= 0.5 else math.acos(row[own])
        inside = angle + margin < math.pi
        row[own] = math.cos(angle + margin) if inside else row[own] - margin * math.sin(margin)
    return of_logits([[scale * s for s in row] for row in rows], labels)


def proxy_nca(loss: nn.Module, x: Tensor, labels: Tensor, scale: float = 1.0, include_positive: bool = False) -> Tensor:
    proxies, terms = spheric(loss.proxies).tolist(), []
    for z, own in zip(spheric(x).tolist(), labels.tolist(), strict=True):
        exponents = [-scale * math.dist(z, p) ** 2 for p in proxies]
        below = [e for c, e in enumerate(exponents) if include_positive or c != own]
        terms.append(log_sum_exp(below) - exponents[own])
    return mean(terms)


def proxy_anchor(loss: nn.Module, x: Tensor, labels: Tensor, alpha: float = 32.0, margin: float = 0.1) -> Tensor:
    s, classes, pull, push = cosines_to(x, loss.proxies), labels.tolist(), [], []
    for c in range(len(loss.proxies)):
        own = [-alpha * (s[i][c] - margin) for i, label in enumerate(classes) if label == c]
        pull += [log_one_plus(own)] if own else []
        push.append(log_one_plus([alpha * (s[i][c] + margin) for i, label in enumerate(classes) if label != c]))
    return mean(pull) + mean(push)


def soft_triple(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    centers_per_class: int = 10,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    tau: float = 0.2,
) -> Tensor:
    centers, logits = [spheric(each).tolist() for each in loss.centers], []
    for z, label in zip(spheric(x).tolist(), labels.tolist(), strict=True):
        row = []
        for c, own in enumerate(centers):
            s = [dot(z, w) for w in own]
            below = log_sum_exp([each / gamma for each in s])
            relaxed = math.fsum(math.exp(each / gamma - below) * each for each in s)
            row.append(scale * (relaxed - margin * (c == label)))
        logits.append(row)
    value, k = of_logits(logits, labels), centers_per_class
    if k > 1:
        pairs = [(own[s], own[t]) for own in centers for s in range(k) for t in range(s + 1, k)]
        apart = math.fsum(math.sqrt(math.dist(a, b) ** 2 + 1e-5) for a, b in pairs)
        value = value + tau * apart / (len(centers) * k * (k - 1))
    return value.to(torch.float64)
