"""Multi-similarity loss, arXiv:1904.06627."""

import math

import pytest
import torch

from dml.losses.multi_similarity import MultiSimilarityLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestMultiSimilarity(LossContract):
    variants = ({}, {"epsilon": None}, {"alpha": 5.0, "beta": 10.0, "base": 0.8, "epsilon": 0.03})
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return MultiSimilarityLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.multi_similarity(embeddings, labels, **options)

    def stops_gradients(self, options):
        return True

    def near(self, loss, options, embeddings, labels):
        return lambda x: by_anchors.multi_similarity(x, labels, **options, held=embeddings)


def test_two_pairs_by_hand():
    # S is 0.5 in the pair of class 0, 1 in that of class 1, and between them 0 and 0.866.
    x = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
    far, near = 0.0, 0.75**0.5

    def anchor(positive, negatives):
        return (
            math.log1p(math.exp(-2 * (positive - 0.5))) / 2
            + math.log1p(sum(math.exp(50 * (n - 0.5)) for n in negatives)) / 50
        )

    # Anchor 0 has negatives at 0, too far to be mined, so it has no term. Of anchor 1 all are mined.
    # Anchors 2 and 3 have a positive at 1 and a negative at 0.866: less than 1 - 0.1 is not mined, nor the other way.
    terms = [0.0, anchor(0.5, [near, near]), 0.0, 0.0]
    value = MultiSimilarityLoss()(x, torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx(sum(terms) / 4, rel=1e-12)
    # Of all pairs, without mining.
    terms = [anchor(0.5, [far, far]), terms[1], *[anchor(1.0, [far, near])] * 2]
    value = MultiSimilarityLoss(epsilon=None)(x, torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx(sum(terms) / 4, rel=1e-12)


@pytest.mark.parametrize(("key", "value"), [("alpha", 0.0), ("beta", -1.0), ("epsilon", -0.1)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        MultiSimilarityLoss(**{key: value})
