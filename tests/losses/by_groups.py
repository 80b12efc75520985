"""Reference values of losses of groups of columns: loops over their formulas in float64.

Each takes the loss, for its groups and weights, embeddings [m, sum(groups)] and labels [m], and the loss's options.
`held` embeddings take the place of the others in whatever gets no gradient.
"""

import math
from itertools import combinations

import torch
from torch import Tensor, nn

from tests.losses.by_anchors import cosines, log_one_plus, spheric
from tests.oracles import Matrix, contrastive, distances, dot, log_sum_exp, mean


def columns(x: Tensor, groups: tuple[int, ...]) -> list[Tensor]:
    """The columns of each group, in float64."""
    starts = [sum(groups[:k]) for k in range(len(groups))]
    return [x.detach().double()[:, start : start + width] for start, width in zip(starts, groups, strict=True)]


def hdc(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    ratios: tuple[float, ...] = (1.0, 0.5, 0.2),
    margin: float = 1.0,
    factor: float = 10.0,
    cascaded: bool = False,
    held: Tensor | None = None,
) -> Tensor:
    classes, total = labels.tolist(), 0.0
    pairs = list(combinations(range(len(classes)), 2))
    chosen_by = columns(x if held is None else held, loss.groups)
    for part, fixed, ratio in zip(columns(x, loss.groups), chosen_by, ratios, strict=True):
        now, then = ([[d**2 for d in row] for row in distances(spheric(each))] for each in (part, fixed))
        positive = [(i, j) for i, j in pairs if classes[i] == classes[j] and then[i][j] > 1e-10]
        negative = [(i, j) for i, j in pairs if classes[i] != classes[j]]
        positive = sorted(positive, key=lambda p: -then[p[0]][p[1]])[: int(ratio * len(positive))]
        negative = sorted(negative, key=lambda p: then[p[0]][p[1]])[: int(ratio * len(negative))]
        losing = [(i, j) for i, j in negative if margin - then[i][j] > 1e-6]
        count = len(positive) + 2 * len(losing)
        if count:
            value = math.fsum(now[i][j] for i, j in positive)
            value += math.fsum(factor * (margin - now[i][j]) for i, j in losing)
            total += value / (2 * count)
        if cascaded:
            pairs = sorted(positive + negative)
    return torch.tensor(total, dtype=torch.float64)


def boosting_weights(
    learners: list[Matrix],
    classes: list[int],
    alpha: float,
    beta: float,
    cost: float,
    boosting: str,
    shrinkage: float,
    start: float,
    negative_weight: float,
) -> list[Matrix]:
    """w of each learner and pair, from the cosines of the learners."""
    m, found = len(classes), []
    score = [[start] * m for _ in range(m)]
    for k in range(len(learners)):
        weights = [[1.0] * m for _ in range(m)]
        for i in range(m if k else 0):
            for j in range(m):
                same = classes[i] == classes[j]
                score_of = alpha * (learners[k - 1][i][j] - beta) * (1 if same else -cost)
                if boosting == "simple":
                    score[i][j] += shrinkage * score_of
                else:
                    step = 2 / (k - 1 + 2)
                    score[i][j] = (1 - step) * score[i][j] + step * score_of
                weights[i][j] = 1 / (1 + math.exp(score[i][j])) if score[i][j] < 700 else 0.0
                if boosting == "simple" and not same:
                    weights[i][j] *= negative_weight
        found.append(weights)
    return found


def bier(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    alpha: float = 2.0,
    beta: float = 0.5,
    cost: float = 25.0,
    boosting: str = "simple",
    shrinkage: float = 0.06,
    start: float = 0.5,
    negative_weight: float = 2.0,
    adversarial: float = 0.0,
    weight_penalty: float = 0.0,
    hidden: int = 512,
    held: Tensor | None = None,
    reversed_gradient: bool = False,
) -> Tensor:
    """`reversed_gradient`: the function whose slope by the embeddings is the gradient that the adversary gives them."""
    parts, classes, m = columns(x, loss.groups), labels.tolist(), len(labels)
    then = columns(x if held is None else held, loss.groups)
    learners = len(parts) // 2 if adversarial else len(parts)
    now = [cosines(part) for part in parts[:learners]]
    options = alpha, beta, cost, boosting, shrinkage, start, negative_weight
    weights = boosting_weights([cosines(part) for part in then[:learners]], classes, *options)
    positives = sum(a == b for a in classes for b in classes)
    negatives = m * m - positives
    terms = []
    for k in range(learners):
        for i in range(m):
            for j in range(m):
                if i != j:
                    same = classes[i] == classes[j]
                    margin = alpha * (now[k][i][j] - beta) * (1 if same else -cost)
                    share = 1 / (positives if same else negatives)
                    terms.append(share * weights[k][i][j] * log_one_plus([-margin]) / learners)
    value = math.fsum(terms)
    if adversarial:
        value += adversarial * _adversary(loss, parts[learners:], weight_penalty, -1 if reversed_gradient else 1)
    return torch.tensor(value, dtype=torch.float64)


def _adversary(loss: nn.Module, copies: list[Tensor], weight_penalty: float, sign: int) -> float:
    total = 0.0
    for (p, q), layers in zip(combinations(range(len(copies)), 2), loss.regressors, strict=True):
        (w1, b1), (w2, b2) = ((layer.weight.tolist(), layer.bias.tolist()) for layer in (layers.first, layers.second))
        squares = []
        for f, source in zip(copies[p].tolist(), copies[q].tolist(), strict=True):
            middle = [max(0.0, dot(row, source) + b) for row, b in zip(w1, b1, strict=True)]
            told = [dot(row, middle) + b for row, b in zip(w2, b2, strict=True)]
            squares += [(a * b) ** 2 for a, b in zip(f, told, strict=True)]
        total -= sign * mean(squares).item()
        for weight, bias in ((w1, b1), (w2, b2)):
            lengths = [math.fsum(row[i] ** 2 for row in weight) for i in range(len(weight[0]))]
            off = math.fsum((length - 1) ** 2 for length in lengths) / len(lengths)
            total += weight_penalty * (off + max(0.0, dot(bias, bias) - 1))
    return total


def per_group(loss: nn.Module, x: Tensor, labels: Tensor, divergence: float = 0.0) -> Tensor:
    """The contrastive loss of each group of unit vectors."""
    value = sum(contrastive(spheric(part), labels) for part in columns(x, loss.groups))
    return value + (divergence * apart(x, loss.groups) if divergence else 0)


def apart(x: Tensor, groups: tuple[int, ...], margin: float = 1.0, anchors: int | None = None) -> float:
    """The mean over images of sum_{p < q} max(0, margin - |B_p - B_q|^2)."""
    learners = [spheric(part).tolist() for part in columns(x[:anchors], groups)]
    images = [
        math.fsum(max(0.0, margin - math.dist(a[i], b[i]) ** 2) for a, b in combinations(learners, 2))
        for i in range(len(learners[0]))
    ]
    return mean(images).item()


def s2sd(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    weight: float = 50.0,
    feature_weight: float = 50.0,
    feature_step: int = 1000,
    held: Tensor | None = None,
) -> Tensor:
    """With a contrastive loss, in training before its first step is counted; `held`: what the teachers see."""

    def log_rows(z: Tensor) -> Matrix:
        rows = [[dot(a, b) / temperature for b in z.tolist()] for a in z.tolist()]
        return [[value - log_sum_exp(row) for value in row] for row in rows]

    def divergence(teacher: Matrix, pupil: Matrix) -> float:
        terms = [math.exp(t) * (t - p) for a, b in zip(teacher, pupil, strict=True) for t, p in zip(a, b, strict=True)]
        return temperature**2 * math.fsum(terms) / len(teacher)

    def target(features: Tensor, layers: nn.ModuleList) -> Tensor:
        (w1, b1), (w2, b2) = ((layer.weight.double(), layer.bias.double()) for layer in layers)
        hidden = [
            [max(0.0, dot(r, f) + b) for r, b in zip(w1.tolist(), b1.tolist(), strict=True)] for f in features.tolist()
        ]
        made = [[dot(r, h) + b for r, b in zip(w2.tolist(), b2.tolist(), strict=True)] for h in hidden]
        return spheric(torch.tensor(made, dtype=torch.float64))

    if len(loss.groups) == 1:
        return per_group(loss, x, labels)
    small, features = columns(x, loss.groups)
    then = columns(x if held is None else held, loss.groups)[1]
    pupil = log_rows(spheric(small))
    taught = [divergence(log_rows(target(then, layers)), pupil) for layers in loss.targets]
    losses = [contrastive(target(features, layers), labels) for layers in loss.targets]
    value = (contrastive(spheric(small), labels) + sum(losses) / len(losses)) / 2 + weight * sum(taught) / len(taught)
    if feature_step == 0:
        value = value + feature_weight * divergence(log_rows(spheric(then)), pupil)
    return value
