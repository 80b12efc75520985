"""Recall@k surrogate and SiMix, arXiv:2108.11179."""

import copy
import random

import pytest
import torch

from dml.losses.recall_at_k import RecallAtKLoss
from tests.losses import SMOOTH, assert_slopes_close, by_ranks, value_and_gradient
from tests.losses.conftest import LossContract


class TestRecallAtK(LossContract):
    variants = ({}, {"ks": [1, 3], "count_query": True}, {"ks": [2], "rank_temperature": 0.3, "k_temperature": 0.2})
    empty_batches = ((2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        return RecallAtKLoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        return by_ranks.recall_at_k(embeddings, labels, **options)


# Seen from the first sample, at 0 degrees: its positives at 20 and 60, the negatives at 40 and 80.
ANGLES = torch.tensor([0.0, 20, 40, 60, 80], dtype=torch.float64).deg2rad()
X = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
LABELS = torch.tensor([0, 0, 1, 0, 2])


def test_at_low_temperatures_it_is_the_recall():
    # The two positives have the ranks 1 and 3.
    for k, found in ((1, 0.5 / 1), (2, 1 / 2), (3, 1.5 / 2), (4, 2 / 2)):  # a rank equal to k is half found
        value = RecallAtKLoss(ks=[k], rank_temperature=1e-4, k_temperature=1e-3)(X, LABELS, anchors=1)
        assert value.item() == pytest.approx(1 - found, abs=1e-6)


def drawn(loss, x, labels):
    """The batch with its mixed rows, by the loss's own next draws."""
    kept = torch.Generator().manual_seed(random.Random(f"{loss.seed} {loss.step}").getrandbits(32))
    z = x / x.norm(dim=1, keepdim=True)
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x)) if labels[i] == labels[j]]
    shares = torch.rand(len(pairs), generator=kept).double().tolist()
    rows = [a * z[i] + (1 - a) * z[j] for a, (i, j) in zip(shares, pairs, strict=True)]
    return torch.stack([*z, *rows]), torch.tensor([*labels.tolist(), *(int(labels[i]) for i, _ in pairs)])


def test_simix_adds_a_row_for_each_pair():
    x, labels = SMOOTH["singletons"].make(0)
    loss = RecallAtKLoss(mixup=True, rank_temperature=0.1).double()
    for _ in range(2):
        before = copy.deepcopy(loss)

        def expected(point, before=before):
            return by_ranks.recall_at_k(*drawn(before, point, labels), rank_temperature=0.1, normalize=False)

        value, gradient = value_and_gradient(loss, x, labels)
        torch.testing.assert_close(value, expected(x), rtol=1e-10, atol=0)
        assert_slopes_close(gradient, expected, x, 1e-7)
    assert loss.step == 2 and loss.eval()(x, labels) == RecallAtKLoss(rank_temperature=0.1)(x, labels)


def test_its_draws_go_on_where_it_was_saved():
    x, labels = SMOOTH["singletons"].make(0)
    first, second, other = RecallAtKLoss(mixup=True), RecallAtKLoss(mixup=True), RecallAtKLoss(mixup=True, seed=1)
    values = [first(x, labels).item() for _ in range(3)]
    assert len({*values, other(x, labels).item()}) == 4, values
    second(x, labels)
    third = RecallAtKLoss(mixup=True)
    third.load_state_dict(second.state_dict())
    assert third(x, labels).item() == values[1]


def test_mixup_in_a_memory_is_refused():
    with pytest.raises(ValueError, match=r"loss\.mixup=True is not possible"):
        RecallAtKLoss(mixup=True)(X, LABELS, anchors=2)


@pytest.mark.parametrize(
    ("key", "value"), [("ks", []), ("ks", [0]), ("rank_temperature", 0.0), ("k_temperature", 0.0), ("seed", -1)]
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        RecallAtKLoss(**{key: value})
