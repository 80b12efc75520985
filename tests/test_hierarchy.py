"""The tree of classes and the nearest classes, held against loops over all pairs of images and of classes."""

import math

import pytest
import torch

from dml.hierarchy import ClassDistances, nearest_classes, thresholds_of, tree_of


def made(sizes, seed=0, dim=3):
    g = torch.Generator().manual_seed(seed)
    labels = torch.tensor([c for c, size in enumerate(sizes) for _ in range(size)])
    x = torch.randn(len(sizes), dim, generator=g)[labels] + 0.4 * torch.randn(len(labels), dim, generator=g)
    order = torch.randperm(len(labels), generator=g)
    return x[order], labels[order]


def slowly(x, labels):
    """Mean squared distances of all pairs of images on the sphere, between classes and within."""
    rows = [[v / math.hypot(*row) for v in row] for row in x.double().tolist()]
    own = [
        [r for r, label in zip(rows, labels.tolist(), strict=True) if label == c] for c in range(int(labels.max()) + 1)
    ]
    between = [[sum(math.dist(a, b) ** 2 for a in p for b in q) / len(p) / len(q) for q in own] for p in own]
    within = [
        sum(math.dist(a, b) ** 2 for a in p for b in p) / (len(p) ** 2 - len(p)) if len(p) > 1 else 0.0 for p in own
    ]
    return between, within


@pytest.mark.parametrize("sizes", [(4, 3, 2, 5, 1, 3), (2, 2), (1, 1, 1), (5,), tuple([2, 3] * 12)])
def test_everything_is_what_loops_find(sizes):
    x, labels = made(sizes)
    between, within = slowly(x, labels)
    distances, count = ClassDistances(x, labels, len(sizes)), len(sizes)
    assert distances.spread.tolist() == pytest.approx(within, abs=1e-12)
    several = [s for s, size in zip(within, sizes, strict=True) if size > 1]
    assert distances.mean_spread == pytest.approx(sum(several) / max(1, len(several)))
    rows = [row for _, block in distances.rows() for row in block.tolist()]
    for p in range(count):
        for q in range(count):
            assert rows[p][q] == (math.inf if p == q else pytest.approx(between[p][q], abs=1e-6))
    near = nearest_classes(distances, min(3, count - 1))
    for p in range(count):
        order = sorted((q for q in range(count) if q != p), key=lambda q: between[p][q])
        assert near[p].tolist() == order[:3]
    thresholds = thresholds_of(distances, 16)
    first = distances.mean_spread
    assert thresholds.tolist() == pytest.approx([level * (4 - first) / 16 + first for level in range(17)])
    nodes = tree_of(distances, thresholds)
    for level, threshold in enumerate(thresholds.tolist()):
        joined = [{p} for p in range(count)]  # of each class all that a chain of short steps reaches
        for _ in range(count):
            for p in range(count):
                for q in range(count):
                    if p != q and between[p][q] < threshold:
                        joined[p] |= joined[q]
                        joined[q] |= joined[p]
        for p in range(count):
            for q in range(count):
                assert (nodes[level, p] == nodes[level, q]) == (q in joined[p] or level == 16)


def test_equally_near_classes_come_in_their_order():
    x = torch.eye(5)[torch.arange(10) // 2]
    near = nearest_classes(ClassDistances(x, torch.arange(10) // 2, 5), 4)
    assert near.tolist() == [[q for q in range(5) if q != p] for p in range(5)]


def test_a_class_without_images_is_in_the_tree():
    x, labels = made((3, 2))
    distances = ClassDistances(x, labels, 3)
    assert tree_of(distances, thresholds_of(distances, 4)).shape == (5, 3)
