"""Reference values of losses that own weights of the classes: loops over their formulas in float64.

Each takes the loss, for its weights, embeddings [m, d] and labels [m], and the loss's options.
"""

import math
import random
from itertools import accumulate

import torch
from torch import Tensor, nn

from tests import oracles
from tests.losses.by_anchors import log_one_plus, spheric, valid
from tests.oracles import Matrix, distances, dot, log_sum_exp, mean


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


def margin_weights(
    x: Tensor, labels: Tensor, i: int, cutoff: float = 0.5, upper: float = 1.4
) -> list[tuple[int, float]]:
    """The negatives that anchor i can draw, with their probabilities."""
    d, row, classes = x.shape[1], distances(spheric(x))[i], labels.tolist()
    negatives = [n for n, other in enumerate(classes) if other != classes[i]]
    drawable = [n for n in negatives if row[n] < upper] or negatives
    logs = []
    for n in drawable:
        at = min(max(row[n], cutoff), upper)
        logs.append(-(d - 2) * math.log(at) - (d - 3) / 2 * math.log(1 - at**2 / 4))
    below = log_sum_exp(logs)
    return [(n, math.exp(each - below)) for n, each in zip(drawable, logs, strict=True)]


def margin_triplets(
    x: Tensor, labels: Tensor, seed: int, step: int, anchors: int | None = None, **limits: float
) -> list[tuple[int, int, int]]:
    """Each positive with the first negative at which the sum of the probabilities exceeds its random number."""
    chosen, anchor_sides = [], valid(labels, anchors)
    if not anchor_sides:
        return []
    generator = torch.Generator().manual_seed(random.Random(f"{seed} {step}").getrandbits(32))
    most = max(len(positives) for _, positives, _ in anchor_sides)
    numbers = torch.rand(len(anchor_sides), most, generator=generator, dtype=torch.float64).tolist()
    for (i, positives, _), own in zip(anchor_sides, numbers, strict=True):
        members, probabilities = zip(*margin_weights(x, labels, i, **limits), strict=True)
        running = list(accumulate(probabilities))
        for p, number in zip(positives, own, strict=False):
            first = next((n for n, upto in zip(members, running, strict=True) if upto > number), members[-1])
            chosen.append((i, p, first))
    return chosen


def margin(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    alpha: float = 0.2,
    beta: float = 1.2,
    nu: float = 0.0,
    cutoff: float = 0.5,
    upper: float = 1.4,
    seed: int = 0,
    anchors: int | None = None,
    held: Tensor | None = None,
) -> Tensor:
    """At the step that was last, or in evaluation mode at the one that stays."""
    step = loss.step - loss.training
    chosen = margin_triplets(x if held is None else held, labels, seed, step, anchors, cutoff=cutoff, upper=upper)
    d, hinges, bounds = distances(spheric(x)), [], []
    for a, p, n in chosen:
        bounds.append(loss.beta[int(labels[a])].item())
        hinges += [alpha + d[a][p] - bounds[-1], alpha + bounds[-1] - d[a][n]]
    kept = [each for each in hinges if each > 0]
    total = math.fsum(kept) + nu * math.fsum(bounds)
    return torch.tensor(total / len(kept) if kept else 0.0, dtype=torch.float64)


def linear(layer: nn.Module, rows: Matrix) -> Matrix:
    weights, biases = layer.weight.tolist(), layer.bias.tolist()
    return [[dot(row, w) + b for w, b in zip(weights, biases, strict=True)] for row in rows]


def softmax(values: list[float]) -> list[float]:
    below = log_sum_exp(values)
    return [math.exp(v - below) for v in values]


def transposed(rows: Matrix) -> Matrix:
    return [list(column) for column in zip(*rows, strict=True)]


def group(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    anchors_per_class: int = 2,
    temperature: float = 24.0,
    iterations: int = 1,
    ce_weight: float = 1.0,
) -> Tensor:
    rows, classes = x.detach().double().tolist(), labels.tolist()
    logits, m = linear(loss.classifier, rows), len(classes)
    shares = [softmax([v / temperature for v in row]) for row in logits]
    for i, own in enumerate(classes):
        if classes[:i].count(own) < anchors_per_class:
            shares[i] = [float(c == own) for c in range(len(logits[0]))]
    # The coefficient of correlation of two rows' entries; of a row of equal entries there is none.
    centred = [[v - math.fsum(row) / len(row) for v in row] for row in rows]
    norms = [max(math.hypot(*row), 1e-12) for row in centred]
    alike = [[max(0.0, dot(centred[i], centred[j]) / norms[i] / norms[j]) for j in range(m)] for i in range(m)]
    for i in range(m):
        alike[i][i] = 1.0
    for _ in range(iterations):
        columns = transposed(shares)
        moved = [[s * dot(alike[i], columns[c]) for c, s in enumerate(shares[i])] for i in range(m)]
        shares = [[v / math.fsum(row) for v in row] for row in moved]
    agreed = [-math.log(shares[i][own] + 1e-12) for i, own in enumerate(classes)]
    return mean(agreed) + ce_weight * of_logits(logits, labels)


def multimodal(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    num_modalities: int = 1,
    proxies_per_class: int = 20,
    gamma: float = 0.1,
    heads: bool = True,
) -> Tensor:
    rows, logits = x.detach().double().tolist(), []
    proxies = spheric(loss.proxies.clamp_min(0)).tolist()
    for row in rows:
        if heads:
            step = len(row) // num_modalities
            parts = [row[j * step : (j + 1) * step] for j in range(num_modalities)]
            row = [p for part, head in zip(parts, loss.heads, strict=True) for p in softmax(linear(head, [part])[0])]
        c = len(row) // num_modalities
        norm = max(math.hypot(*row), 1e-12)
        s = [dot(row, w) / norm for w in proxies]
        shares = softmax([v / gamma for v in s])
        drawn = [math.fsum(p * w[f] for p, w in zip(shares, proxies, strict=True)) for f in range(len(row))]
        att = [math.fsum(row[j * c + a] * (1 + drawn[j * c + a]) for j in range(num_modalities)) for a in range(c)]
        sim = [0.0] * c
        for k in range(proxies_per_class):
            ofk = [s[a * proxies_per_class + k] for a in range(c)]
            for a, share in enumerate(softmax([v / gamma for v in ofk])):
                sim[a] += share * ofk[a]
        logits.append([a + b for a, b in zip(att, sim, strict=True)])
    return of_logits(logits, labels)


def hist(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    tau: float = 32.0,
    alpha: float = 0.9,
    ce_weight: float = 1.0,
    hidden: int = 512,
) -> Tensor:
    rows, classes, m = x.detach().double().tolist(), labels.tolist(), len(labels)
    variances = [[math.exp(min(max(v, 0.0), 6.0)) for v in row] for row in loss.log_vars.tolist()]
    means = spheric(loss.means).tolist()
    d = []
    for z in spheric(x).tolist():
        classwise = zip(means, variances, strict=True)
        d.append([math.fsum((a - b) ** 2 / v for a, b, v in zip(z, mu, var, strict=True)) for mu, var in classwise])
    of_distances = of_logits([[-tau * v for v in row] for row in d], labels)
    # The matrix G of the hypergraph, whole.
    h = [
        [1.0 if c == own else math.exp(-alpha * d[i][c]) for c in sorted(set(classes))] for i, own in enumerate(classes)
    ]
    row_sums, column_sums = [math.fsum(row) for row in h], [math.fsum(column) for column in transposed(h)]
    g = [
        [
            math.fsum(a * b / e for a, b, e in zip(h[i], h[j], column_sums, strict=True))
            / math.sqrt(row_sums[i] * row_sums[j])
            for j in range(m)
        ]
        for i in range(m)
    ]

    def spread(values: Matrix) -> Matrix:
        columns = transposed(values)
        return [[dot(row, column) for column in columns] for row in g]

    between = []
    weights, biases = loss.norm.weight.tolist(), loss.norm.bias.tolist()
    for values, w, b in zip(transposed(spread(linear(loss.first, rows))), weights, biases, strict=True):
        centre = math.fsum(values) / m
        variance = math.fsum((v - centre) ** 2 for v in values) / m
        scaled = [w * (v - centre) / math.sqrt(variance + 1e-5) + b for v in values]
        between.append([v if v > 0 else 0.1 * v for v in scaled])
    logits = spread(linear(loss.second, transposed(between)))
    return of_distances + ce_weight * of_logits(logits, labels)
