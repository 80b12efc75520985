"""Clustering loss, arXiv:1612.01213."""

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from dml.losses.building_blocks.medoids import NormalizedMutualInformation
from dml.losses.clustering import ClusteringLoss
from tests.losses import Batch, by_clusters
from tests.losses.conftest import LossContract


class TestClustering(LossContract):
    by_blocks = False
    variants = ({}, {"gamma": 0.1, "pam_iterations": 0}, {"gamma": 5.0, "pam_iterations": 1})
    empty_batches = ((0, 0, 0), (2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        return ClusteringLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_clusters.clustering(embeddings, labels, **options)

    def test_order_of_the_batch_does_not_matter(self, options, cases):
        """Of equally good medoids the first is taken, as of each cluster of two; the order of classes is free."""
        for loss, embeddings, labels in cases({"unequal": Batch((9, 5, 3, 3, 2, 2), 8)}):
            torch.testing.assert_close(loss(embeddings, 7 - labels), loss(embeddings, labels), rtol=1e-12, atol=0)


def test_choices_in_larger_batches_are_those_of_the_loops():
    changed = 0
    for seed in range(4):
        x, labels = Batch((6, 5, 4, 4, 4, 3, 2, 1, 1), 5).make(seed)
        values = [ClusteringLoss(gamma=2.0, pam_iterations=n)(x, labels) for n in (0, 5)]
        for n, value in zip((0, 5), values, strict=True):
            expected = by_clusters.clustering(x, labels, gamma=2.0, pam_iterations=n)
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        changed += abs(values[0] - values[1]) > 1e-6
    assert changed  # PAM had something to do


@pytest.mark.parametrize("seed", range(3))
def test_nmi_is_scikit_learns(seed):
    random = np.random.default_rng(seed)
    labels = np.unique(random.integers(0, 5, 30), return_inverse=True)[1]
    places = np.stack([random.integers(0, 6, 30), labels, np.zeros(30, int), np.arange(30)])
    expected = [normalized_mutual_info_score(labels, each, average_method="geometric") for each in places]
    np.testing.assert_allclose(NormalizedMutualInformation(labels).of(places), expected, rtol=1e-10, atol=1e-12)


def test_gamma_decays_with_the_steps_of_training_and_goes_on_where_it_was_saved():
    # Two classes that lie in each other: the value has gamma in it.
    x, labels = Batch((4, 4), 2).make(0)
    loss = ClusteringLoss(gamma=4.0, gamma_decay=0.5, decay_steps=2)
    values = [loss(x, labels).item() for _ in range(4)]
    for value, gamma in zip(values, (4, 4, 2, 2), strict=True):
        assert value == pytest.approx(by_clusters.clustering(x, labels, gamma=gamma).item())
    assert values[0] != values[2]
    other = ClusteringLoss(gamma=4.0, gamma_decay=0.5, decay_steps=2)
    other.load_state_dict(loss.state_dict())
    assert other.eval()(x, labels).item() == pytest.approx(by_clusters.clustering(x, labels, gamma=1.0).item())
    assert other.step == 4


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("gamma", {"gamma": -1.0}),
        ("gamma_decay", {"gamma_decay": 0.0}),
        ("decay_steps", {"decay_steps": 0}),
        ("pam_iterations", {"pam_iterations": -1}),
    ],
)
def test_what_is_not_possible_is_refused(key, given):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        ClusteringLoss(**given)
