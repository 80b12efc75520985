"""NRA loss, equations 5 to 13 of arXiv:1909.09427."""

import math

import pytest
import torch

from dml.losses.nra import NRALoss
from tests import oracles
from tests.losses import SMOOTH, TIED, Batch, value_and_gradient
from tests.losses.conftest import LossContract


def column(*numbers: float) -> torch.Tensor:
    """Embeddings of dimension one, whose distances can be read off."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


class TestNRA(LossContract):
    variants = (
        {},
        {"alpha": 1.0, "epsilon": 1e-2},
        {"alpha": 0.5, "epsilon": 1e-3},
        {"detach_range": True},
        {"alpha": 2.0, "epsilon": 0.1, "detach_range": True},
        {"alpha": 1.0, "epsilon": 1e-2, "detach_range": True},
    )
    empty_batches = ((0, 0, 0), (2, 0, 1), (4, 4), (0, 1), (0,))

    def build(self, options, dim):
        return NRALoss(**options)

    def oracle(self, loss, options, embeddings, labels):
        shape = {key: value for key, value in options.items() if key != "detach_range"}
        return oracles.nra(embeddings, labels, **shape)

    def stops_gradients(self, options):
        return options.get("detach_range", False)

    def near(self, loss, options, embeddings, labels):
        if not options.get("detach_range"):
            return super().near(loss, options, embeddings, labels)
        shape = {key: value for key, value in options.items() if key != "detach_range"}
        frozen = oracles.nra_ranges(embeddings)
        return lambda x: oracles.nra(x, labels, **shape, ranges=frozen)


def test_perfect_and_worst_order_by_hand():
    # The anchors 0 and 1 have ranks r+ = 0, r- = 1 at first, and r+ = 1, r- = 0 after the swap.
    # The last sample has no positive and is no anchor.
    loss, labels = NRALoss(epsilon=0.01), torch.tensor([0, 0, 1])
    assert loss(column(0, 1, 3), labels).item() == pytest.approx(-2 * math.log(1.01), rel=1e-12)
    assert loss(column(0, 3, 1), labels).item() == pytest.approx(-2 * math.log(0.01), rel=1e-12)


def test_ranks_between_by_hand():
    # Anchor 0 has D = 1, 2 (positives) and 4, 5 (negatives): r+ = 1/4 with w = 1/32, r- = 3/4 with w = 31/32.
    # Anchor 1 has D = 1, 1 and 3, 4, so r+ = 0 with w = 0 and r- = 2/3 with w = 1 - 8/81.
    # Anchor 2 has D = 2, 1 and 2, 3, so both ranks are 1/2 with w = 1/2. The other classes have no positives.
    value = NRALoss(epsilon=1e-4)(column(0, 1, 2, 4, 5), torch.tensor([0, 0, 0, 1, 2]))
    e = 1e-4
    terms = [2 * math.log(31 / 32 + e), math.log(1 + e) + math.log(73 / 81 + e), 2 * math.log(1 / 2 + e)]
    assert value.item() == pytest.approx(-sum(terms) / 3, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("detach_range", [False, True])
def test_equal_distances_give_rank_zero_and_a_finite_gradient(alpha, detach_range):
    # The rows of a unit matrix have the distance sqrt(2) from each other, so no rank can be computed.
    loss = NRALoss(alpha=alpha, epsilon=0.01, detach_range=detach_range)
    value, gradient = value_and_gradient(loss, torch.eye(4), torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx(-math.log(1.01) - math.log(0.01), rel=1e-6)
    assert gradient.isfinite().all()
    # Here only the anchor in the middle has equal distances.
    embeddings, labels = column(-1, 0, 1), torch.tensor([0, 0, 1])
    value, gradient = value_and_gradient(loss, embeddings, labels)
    torch.testing.assert_close(value, oracles.nra(embeddings, labels, alpha, 0.01), rtol=1e-12, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("detach_range", [False, True])
def test_distances_that_only_rounding_sets_apart_teach_nothing(dtype, detach_range):
    # A simplex, turned: all distances are equal but for their last digits, whose ranks would weigh 1 / eps.
    g = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(24, 24, generator=g, dtype=torch.float64))[0].to(dtype)
    value, gradient = value_and_gradient(NRALoss(detach_range=detach_range), x, torch.arange(24) // 3)
    assert value.item() == pytest.approx(-math.log(1 + 1e-4) - math.log(1e-4), rel=1e-6)
    assert (gradient == 0).all()


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("detach_range", [False, True])
def test_ranks_zero_and_one_are_exact_with_a_finite_gradient(alpha, dtype, detach_range):
    # For alpha < 1 the slope of equation 10 is infinite at both ends, where each of these ranks lies.
    loss, labels = NRALoss(alpha=alpha, epsilon=1e-4, detach_range=detach_range), torch.tensor([0, 0, 1])
    for numbers, similarity in (((0, 1, 3), 1), ((0, 3, 1), 0)):
        value, gradient = value_and_gradient(loss, column(*numbers).to(dtype), labels)
        assert value.item() == pytest.approx(-2 * math.log(similarity + 1e-4), rel=1e-4, abs=1e-6)
        assert gradient.isfinite().all()


def test_large_batch():
    # A loss that walks through the distance matrix in blocks has several of them here.
    labels = torch.randint(400, (1030,), generator=torch.Generator().manual_seed(0))
    embeddings = Batch((1030,), 2).make(0)[0]
    value = NRALoss()(embeddings, labels)
    torch.testing.assert_close(value, oracles.nra(embeddings, labels), rtol=1e-10, atol=0)


@pytest.mark.parametrize("batch", [*SMOOTH.values(), *TIED.values()])
def test_detach_range_changes_only_the_gradient(batch):
    embeddings, labels = batch.make(0)
    with_range, without = (
        value_and_gradient(NRALoss(detach_range=detached), embeddings, labels) for detached in (False, True)
    )
    assert torch.equal(with_range[0], without[0])
    if batch is SMOOTH["unequal"]:
        assert not torch.allclose(with_range[1], without[1], rtol=0.1, atol=0)


def test_scale_and_offset_of_the_embeddings_do_not_matter():
    # The ranks of equation 8 are normalised: a difference would mean an absolute constant in the formula.
    embeddings, labels = SMOOTH["unequal"].make(0)
    value = NRALoss()(embeddings, labels)
    for changed in (embeddings * 1e-6, embeddings * 1e6, embeddings + 10):
        torch.testing.assert_close(NRALoss()(changed, labels), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("key", ["alpha", "epsilon"])
@pytest.mark.parametrize("number", [0.0, -1.0])
def test_constants_that_are_not_positive_are_refused(key, number):
    with pytest.raises(ValueError, match=rf"loss\.{key}\b"):
        NRALoss(**{key: number})


def test_arguments_have_names():
    with pytest.raises(TypeError):
        NRALoss(4.0)
