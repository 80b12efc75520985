"""FastAP, Cakir et al. (2019)."""

import pytest
import torch

from dml.losses.fast_ap import FastAPLoss
from tests.losses import by_ranks
from tests.losses.conftest import LossContract


class TestFastAP(LossContract):
    variants = ({}, {"bins": 1}, {"bins": 37})
    empty_batches = ((2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        return FastAPLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_ranks.fast_ap(embeddings, labels, **options)

    def leaves_open(self, loss, embeddings):
        # At a node the histogram has a kink, and a distance of 0 or 4 stands on one.
        return embeddings.shape[1] == 1


def test_two_nodes_by_hand():
    # D^2 is 1 to the positive and 3 to the negative; nodes at 0 and 4, so h+ = (3/4, 1/4), h = (1, 1).
    angles = torch.tensor([0.0, 60.0, 120.0], dtype=torch.float64).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], 1)
    value = FastAPLoss(bins=1)(x, torch.tensor([0, 0, 1]), anchors=1)
    assert value.item() == pytest.approx(1 - (0.75 * 0.75 / 1 + 0.25 * 1 / 2), rel=1e-9)


@pytest.mark.parametrize(("key", "value"), [("bins", 0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        FastAPLoss(**{key: value})
