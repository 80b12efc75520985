"""BIER and A-BIER, arXiv:1801.04815."""

import math

import pytest
import torch

from dml.losses.bier import BIERLoss
from tests.losses import Batch, by_groups, value_and_gradient
from tests.losses.conftest import LossContract
from tests.losses.test_hdc import halves

ADVERSE = {"adversarial": 0.3, "weight_penalty": 0.5, "hidden": 5}


class TestBIER(LossContract):
    by_blocks = False
    variants = ({}, {"boosting": "eta"}, {"alpha": 1.0, "beta": 0.2, "cost": 3.0, "shrinkage": 1.0, "start": 0.0})
    empty_batches = ((0,),)

    def build(self, options, dim):
        return BIERLoss(groups=halves(dim), **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_groups.bier(loss, embeddings, labels, **options)

    def near(self, loss, options, embeddings, labels):
        return lambda x: by_groups.bier(loss, x, labels, **options, held=embeddings)

    def stops_gradients(self, options):
        return True


class TestABIER(TestBIER):
    """Every learner has a copy of its columns for the adversary; in batches of one dimension there is one of none."""

    variants = (ADVERSE, {**ADVERSE, "boosting": "eta", "weight_penalty": 0.0})
    empty_batches = ()

    def build(self, options, dim):
        torch.manual_seed(100)
        quarter = dim // 4
        groups = (quarter, dim // 2 - quarter) * 2 if dim % 2 == 0 and quarter else ()
        if groups:
            return BIERLoss(groups=groups, **options)
        return BIERLoss(groups=halves(dim), **{**options, "adversarial": 0.0})

    def options(self, loss, options):
        return {**options, "adversarial": loss.adversarial}

    def oracle(self, loss, options, embeddings, labels):
        return by_groups.bier(loss, embeddings, labels, **self.options(loss, options))

    def near(self, loss, options, embeddings, labels):
        options = self.options(loss, options)
        return lambda x: by_groups.bier(loss, x, labels, **options, held=embeddings, reversed_gradient=True)


def test_two_learners_by_hand():
    # Learner 1: cosines 0 in the pair, 1 and 0 to the other; learner 2: cosine 1 in the pair, 0 to the other.
    x = torch.tensor([[1.0, 0, 2, 0], [0, 1, 3, 0], [1, 0, 0, 1]], dtype=torch.float64)
    value = BIERLoss(groups=[2, 2])(x, torch.tensor([0, 0, 1]))

    def term(s, sign):
        return math.log(1 + math.exp(-2 * (s - 0.5) * sign))

    def sigmoid(a):
        return 1 / (1 + math.exp(-a))

    # Of ordered pairs 5 are positive, with the three of an image with itself, and 4 negative.
    first = 2 * term(0, 1) / 5 + 2 * (term(1, -25) + term(0, -25)) / 4
    weights = {pair: 0.5 + 0.06 * 2 * (s - 0.5) * m for pair, s, m in (("01", 0, 1), ("02", 1, -25), ("12", 0, -25))}
    second = 2 * sigmoid(-weights["01"]) * term(1, 1) / 5
    second += 2 * 2 * (sigmoid(-weights["02"]) + sigmoid(-weights["12"])) * term(0, -25) / 4
    assert value.item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_the_adversary_pulls_both_ways():
    x, labels = Batch((3, 3), 8).make(0)
    torch.manual_seed(0)
    loss = BIERLoss(groups=[2, 2, 2, 2], adversarial=1.0, hidden=5).double()
    gradient = value_and_gradient(loss, x, labels)[1]
    plain = value_and_gradient(BIERLoss(groups=[2, 2]), x[:, :4].contiguous(), labels)
    assert torch.equal(gradient[:, :4], plain[1])  # learners see nothing of it: their copies do
    of_weights = loss.regressors[0].first.weight.grad
    before = loss(x, labels)
    with torch.no_grad():
        moved = loss(x - 1e-3 * torch.cat([torch.zeros(6, 4), gradient[:, 4:]], dim=1), labels)
        loss.regressors[0].first.weight -= 1e-3 * of_weights
        assert moved > before > loss(x, labels)  # copies become less alike, and the regressor finds more that is


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adversarial": 1.0}, r"loss\.adversarial=1\.0 .* embedder\.detached=true"),
        ({"adversarial": -1.0}, r"loss\.adversarial=-1"),
        ({"alpha": 0.0}, r"loss\.alpha=0"),
        ({"cost": 0.0}, r"loss\.cost=0"),
        ({"negative_weight": 0.0}, r"loss\.negative_weight=0"),
        ({"weight_penalty": -1.0}, r"loss\.weight_penalty=-1"),
        ({"shrinkage": 2.0}, r"loss\.shrinkage=2"),
        ({"boosting": "none"}, r"loss\.boosting=none"),
        ({"groups": []}, r"loss\.groups=\[\]"),
    ],
)
def test_what_is_not_possible_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        BIERLoss(**{"groups": [2, 2, 3], **given})
