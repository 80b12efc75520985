"""Reference values of losses that are means over anchors or pairs: loops over their formulas in float64.

They share no code with the library, as tests/oracles.py. Each takes embeddings [m, d] and labels [m], of whose first
`anchors` samples alone are anchors if that is given, and returns a float64 scalar without a gradient. `held` embeddings
take the place of the others in whatever gets no gradient: mining and weights.
"""

import math

import torch
from torch import Tensor, nn

from tests.oracles import Matrix, distances, dot, log_sum_exp, mean, npair


def cosines(embeddings: Tensor) -> Matrix:
    """S_ij of all rows, each divided by its norm or by 1e-12."""
    rows = embeddings.detach().double().tolist()
    rows = [[value / max(math.hypot(*row), 1e-12) for value in row] for row in rows]
    return [[dot(a, b) for b in rows] for a in rows]


def spheric(embeddings: Tensor) -> Tensor:
    """The embeddings on the sphere."""
    x = embeddings.detach().double()
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


def sides(labels: Tensor, anchors: int | None) -> list[tuple[int, list[int], list[int]]]:
    """Each anchor with its positives and its negatives."""
    classes = labels.tolist()
    return [
        (
            i,
            [j for j, other in enumerate(classes) if j != i and other == own],
            [j for j, other in enumerate(classes) if other != own],
        )
        for i, own in enumerate(classes[:anchors])
    ]


def valid(labels: Tensor, anchors: int | None) -> list[tuple[int, list[int], list[int]]]:
    """Those that have a positive and a negative."""
    return [each for each in sides(labels, anchors) if each[1] and each[2]]


def log_one_plus(exponents: list[float]) -> float:
    """log(1 + sum e^x); tiny sums keep their digits."""
    if exponents and max(exponents) > 0:
        return log_sum_exp([0.0, *exponents])
    return math.log1p(math.fsum(math.exp(x) for x in exponents))


def multi_similarity(
    x: Tensor,
    labels: Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    anchors: int | None = None,
    held: Tensor | None = None,
) -> Tensor:
    s, mined, total = cosines(x), cosines(x if held is None else held), []
    for i, positives, negatives in valid(labels, anchors):
        kept_p, kept_n = positives, negatives
        if epsilon is not None:
            least, most = min(mined[i][p] for p in positives), max(mined[i][n] for n in negatives)
            kept_n = [n for n in negatives if mined[i][n] + epsilon > least]
            kept_p = [p for p in positives if mined[i][p] - epsilon < most]
        total.append(log_one_plus([-alpha * (s[i][p] - base) for p in kept_p]) / alpha)
        total.append(log_one_plus([beta * (s[i][n] - base) for n in kept_n]) / beta)
    return torch.tensor(math.fsum(total) / len(labels[:anchors]), dtype=torch.float64)


def circle(
    x: Tensor,
    labels: Tensor,
    margin: float = 0.4,
    gamma: float = 80.0,
    anchors: int | None = None,
    held: Tensor | None = None,
) -> Tensor:
    s, still, terms = cosines(x), cosines(x if held is None else held), []
    for i, positives, negatives in valid(labels, anchors):
        push = [gamma * max(0.0, still[i][n] + margin) * (s[i][n] - margin) for n in negatives]
        pull = [-gamma * max(0.0, 1 + margin - still[i][p]) * (s[i][p] - 1 + margin) for p in positives]
        terms.append(log_one_plus([log_sum_exp(push) + log_sum_exp(pull)]))
    return mean(terms)


def sup_con(x: Tensor, labels: Tensor, temperature: float = 0.1, anchors: int | None = None) -> Tensor:
    s, terms = cosines(x), []
    for i, positives, negatives in sides(labels, anchors):
        if positives:
            below = log_sum_exp([s[i][j] / temperature for j in positives + negatives])
            terms.append(math.fsum(below - s[i][p] / temperature for p in positives) / len(positives))
    return mean(terms)


def nt_xent(
    x: Tensor, labels: Tensor, temperature: float = 0.1, average: str = "pair", anchors: int | None = None
) -> Tensor:
    s, terms = cosines(x), []
    for i, positives, negatives in valid(labels, anchors):
        pairs = [log_one_plus([(s[i][n] - s[i][p]) / temperature for n in negatives]) for p in positives]
        terms += pairs if average == "pair" else [math.fsum(pairs) / len(pairs)]
    return mean(terms)


def generalized_lifted(
    x: Tensor, labels: Tensor, margin: float = 1.0, normalize: bool = False, anchors: int | None = None
) -> Tensor:
    d, terms = distances(spheric(x) if normalize else x), []
    for i, positives, negatives in valid(labels, anchors):
        pull, push = log_sum_exp([d[i][p] for p in positives]), log_sum_exp([margin - d[i][n] for n in negatives])
        terms.append(max(0.0, pull + push))
    return mean(terms)


def nca(x: Tensor, labels: Tensor, scale: float = 1.0, normalize: bool = True, anchors: int | None = None) -> Tensor:
    d, terms = distances(spheric(x) if normalize else x), []
    for i, positives, negatives in valid(labels, anchors):
        near = log_sum_exp([-scale * d[i][p] ** 2 for p in positives])
        far = log_sum_exp([-scale * d[i][n] ** 2 for n in negatives])
        terms.append(log_one_plus([far - near]))
    return mean(terms)


def tuplet_margin(
    x: Tensor, labels: Tensor, margin: float = 5.73, scale: float = 64.0, anchors: int | None = None
) -> Tensor:
    z, terms, b = spheric(x), [], math.radians(margin)
    s, d = cosines(x), distances(z)
    for i, positives, negatives in valid(labels, anchors):
        for p in positives:
            # By its half's tangent, exact for small and large angles; where a row is no unit vector by its cosine.
            angle = 2 * math.atan2(d[i][p], float((z[i] + z[p]).norm()))
            if min(z[i].norm(), z[p].norm()) < 0.5:
                angle = math.acos(s[i][p])
            terms.append(log_one_plus([scale * (s[i][n] - math.cos(angle - b)) for n in negatives]))
    return mean(terms)


def mean_hinge(terms: list[float]) -> float:
    """The mean of those above 0."""
    kept = [each for each in terms if each > 0]
    return math.fsum(kept) / len(kept) if kept else 0.0


def calibration(
    x: Tensor,
    labels: Tensor,
    pos_margin: float = 0.9,
    neg_margin: float = 0.6,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    anchors: int | None = None,
) -> Tensor:
    s, pull, push = cosines(x), [], []
    for i, positives, negatives in sides(labels, anchors):
        pull += [pos_margin - s[i][p] for p in positives]
        push += [s[i][n] - neg_margin for n in negatives]
    return torch.tensor(pos_weight * mean_hinge(pull) + neg_weight * mean_hinge(push), dtype=torch.float64)


def ranked_list(
    x: Tensor,
    labels: Tensor,
    form: str = "cvpr",
    alpha: float = 1.2,
    margin: float = 0.4,
    t_p: float = 0.0,
    t_n: float = 10.0,
    balance: float = 0.5,
    anchors: int | None = None,
    held: Tensor | None = None,
) -> Tensor:
    d, still = distances(spheric(x)), distances(spheric(x if held is None else held))
    alpha = 1 + margin / 2 if form == "tpami" else alpha
    values, sums = [], []
    for i, positives, negatives in sides(labels, anchors):
        value = total = 0.0
        for members, sign, bound, sharpness, share in (
            (positives, 1, alpha - margin, t_p, 1 - balance),
            (negatives, -1, alpha, t_n, balance),
        ):
            kept = [j for j in members if sign * (still[i][j] - bound) > 0]
            weights = [math.exp(sharpness * sign * (still[i][j] - bound)) for j in kept]
            weighted = math.fsum(w * sign * (d[i][j] - bound) for w, j in zip(weights, kept, strict=True))
            value += share * weighted / math.fsum(weights) if kept else 0.0
            total += math.fsum(weights)
        values.append(value)
        sums.append(total)
    if form == "cvpr":
        return mean(values)
    total = math.fsum(sums)
    weighted = math.fsum(w * v for w, v in zip(sums, values, strict=True))
    return torch.tensor(weighted / total if total else 0.0, dtype=torch.float64)


def snr(
    x: Tensor,
    labels: Tensor,
    form: str = "contrastive",
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    margin: float = 0.2,
    zero_mean_weight: float = 0.0,
    anchors: int | None = None,
) -> Tensor:
    rows = x.detach().double().tolist()

    def variance(row: list[float]) -> float:
        centre = math.fsum(row) / len(row)
        return math.fsum((each - centre) ** 2 for each in row) / len(row)

    def d(i: int, j: int) -> float:
        return variance([b - a for a, b in zip(rows[i], rows[j], strict=True)]) / (variance(rows[i]) + 1e-12)

    first, second = [], []
    for i, positives, negatives in sides(labels, anchors):
        to_p, to_n = [d(i, p) for p in positives], [d(i, n) for n in negatives]
        if form == "triplet":
            first += [p - n + margin for p in to_p for n in to_n]
        else:
            first += [p - pos_margin for p in to_p]
            second += [neg_margin - n for n in to_n]
    lengths = mean([abs(math.fsum(row)) for row in rows[:anchors]])
    return mean_hinge(first) + mean_hinge(second) + zero_mean_weight * lengths


def histogram(x: Tensor, labels: Tensor, bins: int = 201, anchors: int | None = None, less: float = 0.0) -> Tensor:
    """The value less a number, with the digits that a difference of two values has lost."""
    s, width = cosines(x), 2 / (bins - 1)
    pairs: tuple[list[float], list[float]] = ([], [])
    for i, positives, negatives in sides(labels, anchors):
        pairs[0].extend(s[i][p] for p in positives)
        pairs[1].extend(s[i][n] for n in negatives)
    if not pairs[0] or not pairs[1]:
        return torch.tensor(0.0, dtype=torch.float64)
    shares = []
    for values in pairs:
        nodes = [0.0] * bins
        for value in values:
            low = min(max(math.floor((value + 1) / width), 0), bins - 2)
            upper = (value + 1) / width - low
            nodes[low] += (1 - upper) / len(values)
            nodes[low + 1] += upper / len(values)
        shares.append(nodes)
    positive, negative = shares
    terms = [negative[r] * math.fsum(positive[: r + 1]) for r in range(bins)]
    return torch.tensor(math.fsum([*terms, -less]), dtype=torch.float64)


def angular(x: Tensor, labels: Tensor, alpha: float = 45.0, anchors: int | None = None) -> Tensor:
    s, terms, t = cosines(x), [], math.tan(math.radians(alpha)) ** 2
    for a, positives, negatives in valid(labels, anchors):
        for p in positives:
            pull = 2 * (1 + t) * s[a][p]
            terms.append(log_one_plus([4 * t * (s[a][n] + s[p][n]) - pull for n in negatives]))
    return mean(terms)


def npair_angular(
    x: Tensor, labels: Tensor, alpha: float = 45.0, angular_weight: float = 2.0, l2_weight: float = 0.0
) -> Tensor:
    return npair(x, labels, l2_weight) + angular_weight * angular(x, labels, alpha)


def htl(
    loss: nn.Module,
    x: Tensor,
    labels: Tensor,
    beta: float = 0.1,
    depth: int = 16,
    average: str = "all",
    anchors: int | None = None,
) -> Tensor:
    """With the tree that the loss has: the level of two classes is the first at which their nodes are the same."""
    z, nodes, classes = spheric(x).tolist(), loss.nodes.tolist(), labels.tolist()
    thresholds, spread, losses, count = loss.thresholds.tolist(), loss.spread.tolist(), [], 0
    for a, positives, negatives in valid(labels, anchors):
        for n in negatives:
            level = next(i for i in range(depth + 1) if nodes[i][classes[a]] == nodes[i][classes[n]])
            margin = beta + thresholds[level] - spread[classes[a]]
            for p in positives:
                losses.append(max(0.0, math.dist(z[a], z[p]) ** 2 - math.dist(z[a], z[n]) ** 2 + margin))
                count += 1
    if average == "active":
        count = sum(each > 0 for each in losses)
    return torch.tensor(math.fsum(losses) / (2 * count) if count else 0.0, dtype=torch.float64)
