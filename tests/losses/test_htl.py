"""Hierarchical triplet loss, arXiv:1810.06951."""

import pytest
import torch

from dml.losses.htl import HTLLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract
from tests.losses.table import htl

CLASSES = 7


class TestHTL(LossContract):
    variants = ({}, {"average": "active", "depth": 4}, {"beta": 0.0})
    empty_batches = ((0, 0, 0), (0, 1), (3,))
    labels_that_count = (0, 0, 1, 1, 2)

    def build(self, options, dim):
        return htl(embedding_dim=dim, num_classes=CLASSES, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.htl(loss, embeddings, labels, **options)


def test_without_a_tree_it_is_the_triplet_loss_of_one_margin():
    x, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) // 2
    loss = HTLLoss(num_classes=4, beta=0.3)
    z = x / x.norm(dim=1, keepdim=True)
    terms = [
        max(0.0, float((z[a] - z[p]).square().sum() - (z[a] - z[n]).square().sum()) + 0.3)
        for a in range(8)
        for p in range(8)
        for n in range(8)
        if a != p and labels[a] == labels[p] != labels[n]
    ]
    assert loss(x, labels).item() == pytest.approx(sum(terms) / len(terms) / 2, rel=1e-12)


def test_margins_by_hand():
    # Classes at 0, 10 and 90 degrees, each of two images 20 degrees apart.
    angles = torch.deg2rad(torch.tensor([-10.0, 10, 0, 20, 80, 100])).double()
    x, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = HTLLoss(num_classes=3, depth=4)
    loss.see_training_set(x, labels)

    def squared(*degrees):
        return float(torch.tensor([2 - 2 * torch.deg2rad(torch.tensor(float(d))).cos() for d in degrees]).mean())

    first = squared(20)  # the spread of all classes, d_0; classes 0 and 1 are nearer to each other
    assert squared(10, 30, 10, 10) < first
    # Classes 1 and 2 are 60 to 100 degrees apart: nearer than d_2, and not than d_1.
    levels = [first + level * (4 - first) / 4 for level in range(5)]
    far = squared(80, 100, 60, 80)
    level = next(i for i, threshold in enumerate(levels) if far < threshold)
    margins = loss.margins(torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert margins[0, 0].item() == pytest.approx(0.1, abs=1e-6)
    assert margins[0, 1].item() == margins[1, 1].item() == pytest.approx(0.1 + levels[level] - first, abs=1e-6)


def test_the_tree_is_in_the_checkpoint():
    first, second = htl(embedding_dim=3, num_classes=CLASSES), HTLLoss(num_classes=CLASSES)
    second.load_state_dict(first.state_dict())
    x, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert second(x, labels) == first(x, labels)


@pytest.mark.parametrize(("key", "value"), [("num_classes", 0), ("beta", -0.1), ("depth", 0), ("average", "some")])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        HTLLoss(**{"num_classes": 3, key: value})


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match=r"loss\.num_classes=3 .* above all labels, 0 to 3 here"):
        HTLLoss(num_classes=3)(torch.randn(4, 2), torch.tensor([0, 0, 3, 3]))
