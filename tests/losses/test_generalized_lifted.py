"""Generalised lifted structure loss, arXiv:1703.07737."""

import pytest
import torch

from dml.losses.generalized_lifted import GeneralizedLiftedLoss
from tests.losses import Batch, by_anchors
from tests.losses.conftest import LossContract


class TestGeneralizedLifted(LossContract):
    variants = ({}, {"normalize": True}, {"margin": 3.0}, {"margin": 0.1, "normalize": True})
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return GeneralizedLiftedLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.generalized_lifted(embeddings, labels, **options)


def test_three_samples_by_hand():
    # D of the pair is 3, its members have the distances 4 and 5 to the only negative.
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    value = GeneralizedLiftedLoss(margin=2.5)(x, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((1.5 + 0.5) / 2, rel=1e-6)


def test_normalised_it_sees_directions_alone():
    x, labels = Batch((3, 3, 2), 4).make(0)
    loss = GeneralizedLiftedLoss(normalize=True)
    torch.testing.assert_close(loss(3 * x, labels), loss(x, labels), rtol=1e-12, atol=0)
    assert not torch.isclose(GeneralizedLiftedLoss()(3 * x, labels), GeneralizedLiftedLoss()(x, labels))


@pytest.mark.parametrize(("key", "value"), [("margin", 0.0), ("margin", -1.0)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        GeneralizedLiftedLoss(**{key: value})
