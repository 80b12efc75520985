"""Histogram loss, arXiv:1611.00822."""

import pytest
import torch

from dml.losses.histogram import HistogramLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


class TestHistogram(LossContract):
    variants = ({}, {"bins": 6})
    empty_batches = ((0,), (0, 1), (0, 0, 0))

    def build(self, options, dim):
        return HistogramLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.histogram(embeddings, labels, **options)

    def near(self, loss, options, embeddings, labels):
        base = by_anchors.histogram(embeddings, labels, **options).item()
        return lambda x: by_anchors.histogram(x, labels, **options, less=base)


def test_by_hand():
    # One positive pair of cosine 0.25 between the nodes 0 and 0.5; negatives of 1 and 0.25.
    x = torch.tensor([[1.0, 0.0], [0.25, 0.9375**0.5], [2.0, 0.0]], dtype=torch.float64)
    value = HistogramLoss(bins=5)(x, torch.tensor([0, 0, 1]))
    # A negative of 1 is above the pair; one of 0.25 shares both of its nodes with it.
    assert value.item() == pytest.approx((1 + 0.5 * 0.5 + 0.5 * 1) / 2, rel=1e-12)


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match=r"loss\.bins=1 is not possible: it must be 2 or greater"):
        HistogramLoss(bins=1)
