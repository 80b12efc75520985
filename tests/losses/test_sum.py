"""Any losses together."""

import pytest
import torch
from torch import nn

from dml.losses.arc_face import ArcFaceLoss
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.memory import CrossBatchMemory
from dml.losses.npair import NPairLoss
from dml.losses.nra import NRALoss
from dml.losses.sum import SumLoss
from dml.losses.triplet import TripletLoss
from tests import oracles
from tests.losses import SMOOTH, by_proxies
from tests.losses.conftest import LossContract


class TestSum(LossContract):
    variants = ({"first": 1.0, "second": 0.3},)
    labels_that_count = (0, 0, 1, 1, 0)

    def build(self, options, dim):
        torch.manual_seed(100)
        losses = {"first": ContrastiveLoss(margin=2.0), "second": ArcFaceLoss(embedding_dim=dim, num_classes=7)}
        return SumLoss(losses=losses, weights=options)

    def oracle(self, loss, options, embeddings, labels):
        first = oracles.contrastive(embeddings, labels, margin=2.0)
        return first + options["second"] * by_proxies.arc_face(loss.losses["second"], embeddings, labels)


def test_it_says_what_its_parts_are():
    x, labels = SMOOTH["unequal"].make(0)
    parts = {"near": NRALoss(), "far": TripletLoss()}
    loss = SumLoss(losses=parts, weights={"near": 2, "far": -0.5})
    value, found = loss(x, labels), loss.diagnose(x, labels)
    assert value == 2 * found["loss/near"] - 0.5 * found["loss/far"]
    assert found["loss/near"] == NRALoss()(x, labels) and not found["loss/near"].requires_grad
    own = {f"{key}/near": each for key, each in NRALoss().diagnose(x, labels).items()}
    assert own and found.keys() == {"loss/near", "loss/far", *own}


def test_inside_and_around_a_memory():
    x, labels = SMOOTH["unequal"].make(0)
    kept = {"size": 30, "start_step": 0, "embedding_dim": 8}

    def both(wrap):
        return {"a": wrap(ContrastiveLoss(margin=4.0)), "b": wrap(TripletLoss(mining="hard"))}

    weights = {"a": 0.5, "b": 3.0}
    inside = CrossBatchMemory(loss=SumLoss(losses=both(lambda loss: loss), weights=weights), **kept).double()
    around = SumLoss(losses=both(lambda loss: CrossBatchMemory(loss=loss, **kept)), weights=weights).double()
    values = [(inside(x + step, labels), around(x + step, labels)) for step in range(3)]
    assert all(torch.equal(first, second) for first, second in values)
    assert len({first.item() for first, _ in values}) == 3


def test_a_memory_around_a_part_without_anchors_is_refused():
    with pytest.raises(ValueError, match=r"loss\.loss=NPairLoss is not possible"):
        part = SumLoss(losses={"a": NRALoss(), "b": NPairLoss()}, weights={"a": 1, "b": 1})
        CrossBatchMemory(loss=part, embedding_dim=4)


@pytest.mark.parametrize(
    ("losses", "weights", "said"),
    [
        ({}, {}, r"loss\.losses=\{\} is not possible: it must be one or more losses by name"),
        ({"a": nn.Identity()}, {}, r"loss\.weights\.a=null is not .*: it must be a number: give \+loss\.weights\.a=1$"),
        ({"a": nn.Identity()}, {"a": 1, "b": 2}, r"loss\.weights\.b=2 is not .*: it must be of one of the losses a$"),
        ({"keys": nn.Identity()}, {"keys": 1}, r"loss\.losses=keys is not possible"),
        ({"a.b": nn.Identity()}, {"a.b": 1}, r"loss\.losses=a\.b is not possible"),
    ],
)
def test_what_is_not_possible_is_refused(losses, weights, said):
    with pytest.raises(ValueError, match=said):
        SumLoss(losses=losses, weights=weights)
