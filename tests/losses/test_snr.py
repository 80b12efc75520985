"""Signal-to-noise ratio losses, arXiv:1904.02616."""

import pytest
import torch

from dml.losses.snr import SNRLoss
from tests.losses import by_anchors
from tests.losses.conftest import LossContract


def snr_distances(x):
    centred = x.double() - x.double().mean(dim=1, keepdim=True)
    return torch.cdist(centred, centred).square() / x.shape[1] / (centred.square().mean(dim=1, keepdim=True) + 1e-12)


class TestSNR(LossContract):
    variants = ({}, {"pos_margin": 0.5, "neg_margin": 3.0, "zero_mean_weight": 0.1}, {"form": "triplet", "margin": 2.0})
    labels_that_count = (0, 0, 1, 1, 0)

    def build(self, options, dim):
        return SNRLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_anchors.snr(embeddings, labels, **options)

    def leaves_open(self, loss, embeddings):
        # A term of 0 counts or not as rounding has it: of rows that differ by a constant, or of a grid.
        d = snr_distances(embeddings)
        if loss.form == "triplet":
            terms = d[:, :, None] - d[:, None, :] + loss.margin
        else:
            terms = torch.stack([d - loss.neg_margin, d - loss.pos_margin])
            terms = terms[:, (embeddings[:, None] != embeddings).any(dim=2)]  # equal rows are at 0 exactly
        return (terms.abs() < 1e-6 * d.max()).any()


def test_one_anchor_by_hand():
    # The anchor's variance is 4; differences to the positive 2, 0 and to the negative 2, 8: variances 1 and 9.
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [3.0, 13.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert SNRLoss(neg_margin=3.0)(x, labels, anchors=1).item() == pytest.approx(1 / 4 + 3 - 9 / 4, rel=1e-9)
    triplet = SNRLoss(form="triplet", margin=2.5, zero_mean_weight=0.5)
    assert triplet(x, labels, anchors=1).item() == pytest.approx(1 / 4 - 9 / 4 + 2.5 + 3, rel=1e-9)
    assert SNRLoss(form="triplet")(x, labels, anchors=1).item() == 0


@pytest.mark.parametrize("form", ["contrastive", "triplet"])
def test_a_sample_alone_has_only_the_weight_of_its_mean(form):
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    value = SNRLoss(form=form)(x, torch.tensor([0]))
    assert value == 0 and value.requires_grad
    assert SNRLoss(form=form, zero_mean_weight=2.0)(x, torch.tensor([0])) == 6


@pytest.mark.parametrize(
    ("key", "value"),
    [("form", "x"), ("pos_margin", -1.0), ("neg_margin", 0.0), ("margin", 0.0), ("zero_mean_weight", -1.0)],
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        SNRLoss(**{key: value})
