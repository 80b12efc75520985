"""Reference values of losses that own weights, not of the classes, as by_anchors.py: loops in float64.

Each takes the loss, for its weights, embeddings [m, d] and labels [m], and the loss's options.
"""

import math

import torch
from torch import Tensor, nn

from tests.losses.by_anchors import cosines, log_one_plus, spheric
from tests.losses.by_proxies import linear
from tests.oracles import contrastive, distances, mean


def sigmoid_pairs(
    loss: nn.Module, x: Tensor, labels: Tensor, scale: float = 10.0, shift: float = -10.0, anchors: int | None = None
) -> Tensor:
    """The options are where its weights began."""
    s, classes, terms = cosines(x), labels.tolist(), []
    t, b = math.exp(float(loss.log_scale.detach())), float(loss.shift.detach())
    for i, own in enumerate(classes[:anchors]):
        for j, other in enumerate(classes):
            if i != j:
                sign = 1 if own == other else -1
                terms.append(log_one_plus([-sign * (t * s[i][j] + b)]))
    return torch.tensor(math.fsum(terms) / len(classes[:anchors]), dtype=torch.float64)


def score(loss: nn.Module, a: list[float], b: list[float]) -> float:
    """PDDM's S of two embeddings on the sphere."""
    parts = []
    for layer, values in (
        (loss.u, [abs(p - q) for p, q in zip(a, b, strict=True)]),
        (loss.v, [(p + q) / 2 for p, q in zip(a, b, strict=True)]),
    ):
        through = [max(0.0, v) for v in linear(layer, [values])[0]]
        norm = max(math.hypot(*through), 1e-12)
        parts += [v / norm for v in through]
    c = [max(0.0, v) for v in linear(loss.c, [parts])[0]]
    return linear(loss.s, [c])[0][0]


def pddm(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    alpha: float = 0.5,
    beta: float = 1.0,
    embedding_weight: float = 0.5,
    scope: str = "batch",
    dropout: float = 0.0,
) -> Tensor:
    """Without dropout."""
    z, classes = spheric(x).tolist(), labels.tolist()
    s = [[score(loss, a, b) for b in z] for a in z]
    d = distances(spheric(x))
    pairs = [(i, j) for i, own in enumerate(classes) for j, other in enumerate(classes) if i < j and own == other]
    if len(set(classes)) == 1:
        return mean([])
    if scope != "pair":
        groups = [pairs] if scope == "batch" else [[p for p in pairs if classes[p[0]] == own] for own in set(classes)]
        pairs = [min(group, key=lambda p: s[p[0]][p[1]]) for group in groups if group]
    terms = []
    for i, j in pairs:
        negatives = [n for n, other in enumerate(classes) if other != classes[i]]
        for a in (i, j):
            n = max(negatives, key=lambda n, a=a: s[a][n])
            of_s = max(0.0, alpha + s[a][n] - s[i][j])
            terms.append(of_s + embedding_weight * max(0.0, beta + d[i][j] ** 2 - d[a][n] ** 2))
    return mean([p + q for p, q in zip(terms[::2], terms[1::2], strict=True)])


def matryoshka(loss: nn.Module, x: Tensor, labels: Tensor, normalize: bool = True) -> Tensor:
    """Of contrastive parts."""
    parts = [x.detach().double()[:, :size] for size in loss.sizes]
    values = [contrastive(spheric(part) if normalize else part, labels) for part in parts]
    return sum(w * value for w, value in zip(loss.weights, values, strict=True))
