"""Simultaneous similarity-based self-distillation, arXiv:2009.08348."""

import pytest
import torch

from dml.losses.contrastive import ContrastiveLoss
from dml.losses.s2sd import S2SDLoss
from tests.losses import Batch, by_groups
from tests.losses.conftest import LossContract
from tests.losses.table import s2sd
from tests.losses.test_hdc import halves


class TestS2SD(LossContract):
    by_blocks = False
    variants = ({"feature_step": 0, "weight": 3.0, "feature_weight": 2.0}, {"temperature": 0.5, "weight": 1.0})
    labels_that_count = (0, 0, 1, 1, 2)

    def build(self, options, dim):
        torch.manual_seed(100)
        return s2sd(groups=halves(dim), **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_groups.s2sd(loss, embeddings, labels, **options)

    def near(self, loss, options, embeddings, labels):
        return lambda x: by_groups.s2sd(loss, x, labels, **options, held=embeddings)

    def stops_gradients(self, options):
        return True

    def test_gradients_of_its_weights_are_the_oracles(self, options):
        # Teachers are held: their weights learn from their own losses alone.
        super().test_gradients_of_its_weights_are_the_oracles({**options, "weight": 0.0, "feature_weight": 0.0})


def test_the_features_teach_from_their_step_on_and_a_checkpoint_knows_the_step():
    torch.manual_seed(0)
    given = {"loss": ContrastiveLoss(), "groups": [2, 3], "targets": [4]}
    loss, never = (S2SDLoss(**given, feature_step=step, feature_weight=weight) for step, weight in ((2, 5.0), (0, 0.0)))
    never.load_state_dict(loss.state_dict())
    x, labels = Batch((3, 2, 2), 5).make(0)
    x = x.float()
    values = [loss(x, labels).item() for _ in range(3)]
    assert values[0] == values[1] == never(x, labels).item() < values[2]
    again = S2SDLoss(**given, feature_step=2, feature_weight=5.0)
    again.load_state_dict(loss.state_dict())
    assert again.step == 3 and again.eval()(x, labels).item() == values[2] and again.step == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"groups": [2, 3, 4]}, r"loss\.groups=\[2, 3, 4\] .* two, as embedder=with_features"),
        ({"targets": []}, r"loss\.targets=\[\]"),
        ({"temperature": 0.0}, r"loss\.temperature=0"),
        ({"weight": -1.0}, r"loss\.weight=-1"),
        ({"feature_weight": -1.0}, r"loss\.feature_weight=-1"),
        ({"feature_step": -1}, r"loss\.feature_step=-1"),
    ],
)
def test_what_is_not_possible_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        S2SDLoss(**{"loss": ContrastiveLoss(), "groups": [2, 3], **given})
