"""SupAP, arXiv:2110.01445."""

import pytest
import torch

from dml.losses.sup_ap import SupAPLoss
from tests.losses import by_ranks
from tests.losses.conftest import LossContract


class TestSupAP(LossContract):
    variants = ({}, {"include_self": True, "offset": 1.44}, {"start": 0.0, "tau": 0.2, "rho": 2.0, "delta": 0.3})
    empty_batches = ((2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        return SupAPLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_ranks.sup_ap(embeddings, labels, **options)

    def stops_gradients(self, options):
        return True

    def leaves_open(self, loss, embeddings):
        # Where two members are equally near, rounding decides which comes first.
        z = torch.nn.functional.normalize(embeddings.double(), dim=1)
        s = (z @ z.T).fill_diagonal_(2).sort(dim=1).values
        return (s.diff(dim=1) < 1e-6).any()


# Seen from the first sample, at 0 degrees: its positives at 20 and 60, the negatives at 40 and 80.
ANGLES = torch.tensor([0.0, 20, 40, 60, 80], dtype=torch.float64).deg2rad()
X = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
LABELS = torch.tensor([0, 0, 1, 0, 2])


def test_well_apart_by_hand():
    # The positive at 60 degrees has rank 2 among the positives and one negative before it, nearer by 0.266.
    ahead = X[0] @ (X[2] - X[3]) / 4
    h = 100 * (ahead - 0.05) + 1 / (1 + torch.tensor(-5.0).exp()) + 0.5
    value = SupAPLoss()(X, LABELS, anchors=1)
    assert value.item() == pytest.approx(1 - (1 + 2 / (2 + h.item())) / 2, rel=1e-6)


def test_places_beyond_the_positives_of_a_small_class_break_no_gradient():
    # The anchors of the pair have fewer positives than those of the larger class, and negatives that weigh nothing.
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [-1.0, 0.0], [-1.0, 1e-4], [-1.0, 2e-4]], requires_grad=True)
    SupAPLoss(tau=1e-3)(x, torch.tensor([0, 0, 1, 1, 1])).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("key", "value"), [("tau", 0.0), ("rho", -1.0), ("delta", -0.1)])
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        SupAPLoss(**{key: value})
