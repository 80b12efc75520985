"""ROADMAP, arXiv:2110.01445."""

import pytest

from dml.losses.roadmap import RoadmapLoss
from dml.losses.sup_ap import SupAPLoss
from tests.losses import SMOOTH, by_ranks
from tests.losses.conftest import LossContract
from tests.losses.test_sup_ap import TestSupAP as OfSupAP


class TestRoadmap(LossContract):
    variants = ({"weight": 0.3, "include_self": True, "offset": 1.44, "neg_margin": 0.47},)
    empty_batches = ((0,),)
    labels_that_count = (0, 0, 1, 1, 0)
    leaves_open = OfSupAP.leaves_open

    def build(self, options, dim):
        return RoadmapLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_ranks.roadmap(embeddings, labels, **options)

    def stops_gradients(self, options):
        return True


def test_without_calibration_it_is_sup_ap():
    x, labels = SMOOTH["unequal"].make(0)
    assert RoadmapLoss(weight=0, tau=0.1)(x, labels) == SupAPLoss(tau=0.1)(x, labels)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_what_is_not_possible_is_refused(weight):
    with pytest.raises(ValueError, match=r"loss\.weight="):
        RoadmapLoss(weight=weight)
