"""N-pair and angular loss together, arXiv:1708.01682."""

import pytest
import torch

from dml.losses.npair_angular import NPairAngularLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestNPairAngular(LossContract):
    variants = ({}, {"alpha": 36.0, "angular_weight": 0.5, "l2_weight": 0.02})
    empty_batches = ((2, 0, 1), (0, 1), (0,))
    labels_that_count = (0, 1, 1, 0)

    def build(self, options, dim):
        return NPairAngularLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.npair_angular(embeddings, labels, **options)

    def permutation(self, labels):
        # Which members make N-pair's pair depends on their order, so only whole classes change places.
        return torch.sort(-labels, stable=True).indices


@pytest.mark.parametrize(("key", "value"), [("alpha", 70.0), ("angular_weight", -1.0), ("l2_weight", -0.1)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        NPairAngularLoss(**{key: value})
