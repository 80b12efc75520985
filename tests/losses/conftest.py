"""What every loss promises. A test class names its variants and its oracle, and inherits these tests.

Each test runs for every variant (`options`, the arguments of the constructor). A test that goes through
batches does so by the fixture `cases`, once as they are and once in blocks; what it prints names the batch that failed.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dml.losses.building_blocks import extremes, pairwise
from tests.losses import SMOOTH, TIED, Batch, assert_slopes_close, value_and_gradient

ANY = SMOOTH | TIED


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "options" in metafunc.fixturenames:
        metafunc.parametrize("options", metafunc.cls.variants, ids=str)
    if "cases" in metafunc.fixturenames and metafunc.cls.by_blocks:
        metafunc.parametrize("path", ["whole", "blocks"], indirect=True)


@pytest.fixture(autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the batches through the code for large ones too: products, mended, in blocks of a few rows."""
    if getattr(request, "param", "whole") == "blocks":
        monkeypatch.setattr(pairwise, "_SMALL", -1)
        monkeypatch.setattr(extremes, "_DENSE", 0)
        monkeypatch.setattr(pairwise, "_BLOCK", {"cpu": 40})


@pytest.fixture
def cases(request: pytest.FixtureRequest, options: dict[str, Any], path: None) -> Callable[..., Iterator[Any]]:
    """(loss, embeddings, labels) of the draws of some batches, in the precision of the loss."""
    contract = request.instance

    def each(
        batches: dict[str, Batch], dtype: torch.dtype = torch.float64
    ) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        for name, batch in batches.items():
            loss = contract.build(options, batch.dim).to(dtype)
            for draw, (embeddings, labels) in enumerate(batch.draws()):
                if not contract.leaves_open(loss, embeddings):
                    print(f"{name}, draw {draw}, {dtype}")
                    yield loss, embeddings.to(dtype), labels

    return each


class LossContract:
    """The tests that all losses share."""

    variants: tuple[dict[str, Any], ...] = ({},)
    by_blocks = True  # it uses the distance matrix of losses/building_blocks
    empty_batches: tuple[tuple[int, ...], ...] = ()  # labels without any valid pair or anchor
    labels_that_count = (0, 0, 1, 1, 2)  # none of these samples is left out of the loss

    def build(self, options: dict[str, Any], dim: int) -> nn.Module:
        raise NotImplementedError

    def oracle(self, loss: nn.Module, options: dict[str, Any], embeddings: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def near(
        self, loss: nn.Module, options: dict[str, Any], embeddings: Tensor, labels: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """The oracle around these embeddings, with what the loss holds constant as it is there."""
        return lambda x: self.oracle(loss, options, x, labels)

    def stops_gradients(self, options: dict[str, Any]) -> bool:
        """Whether it holds something constant that is not, so that its gradient is that of no function."""
        return False

    def leaves_open(self, loss: nn.Module, embeddings: Tensor) -> bool:
        """Whether rounding decides what the loss is."""
        return False

    def permutation(self, labels: Tensor) -> Tensor:
        """An order of the batch that must not change the loss."""
        return torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))

    def test_value_is_the_oracles(self, options, cases):
        for loss, embeddings, labels in cases(ANY):
            value, expected = loss(embeddings, labels), self.oracle(loss, options, embeddings, labels)
            assert value.dtype == torch.float64 and value.shape == ()
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-13)

    def test_value_in_float32(self, options, cases):
        for loss, embeddings, labels in cases(ANY, torch.float32):
            value, expected = loss(embeddings, labels), self.oracle(loss, options, embeddings, labels)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)

    def test_gradient_is_the_oracles(self, options, cases):
        for loss, embeddings, labels in cases(SMOOTH):
            gradient = value_and_gradient(loss, embeddings, labels)[1]
            step = 3e-8 * embeddings.norm(dim=1).median().item()
            assert_slopes_close(gradient, self.near(loss, options, embeddings, labels), embeddings, step)

    def test_gradients_of_its_weights_are_the_oracles(self, options):
        for name in ("unequal", "singletons", "one_class"):
            embeddings, labels = SMOOTH[name].make(0)
            loss = self.build(options, embeddings.shape[1]).double()
            value_and_gradient(loss, embeddings, labels)
            for key, weight in loss.named_parameters():
                other = copy.deepcopy(loss)
                own = other.get_parameter(key)

                def moved(point, other=other, own=own, of=(embeddings, labels)):
                    own.data.copy_(point)
                    return self.oracle(other, options, *of)

                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                print(name, key)
                assert_slopes_close(gradient, moved, weight.detach().clone(), 1e-6)

    def test_gradient_at_ties_is_finite(self, options, cases):
        for dtype in (torch.float32, torch.float64):
            for loss, embeddings, labels in cases(TIED, dtype):
                assert value_and_gradient(loss, embeddings, labels)[1].isfinite().all()

    def test_its_gradient_has_a_gradient(self, options):
        embeddings, labels = SMOOTH["unequal"].make(1)
        loss = self.build(options, SMOOTH["unequal"].dim).double()
        leaf = embeddings.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, labels), leaf, create_graph=True)
        plain = value_and_gradient(loss, embeddings, labels)[1]
        torch.testing.assert_close(gradient, plain, rtol=1e-9, atol=1e-12)
        if self.stops_gradients(options):
            return
        (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(2), dtype=leaf.dtype)
        ends = [value_and_gradient(loss, embeddings + step * direction, labels)[1] for step in (1e-6, -1e-6)]
        expected = (ends[0].square().sum() - ends[1].square().sum()) / 2e-6
        torch.testing.assert_close((second * direction).sum(), expected, rtol=1e-5, atol=1e-7)

    def test_without_pairs_the_loss_is_zero_and_still_has_a_gradient(self, options):
        for classes in self.empty_batches:
            loss = self.build(options, 3)
            for embeddings in (torch.randn(len(classes), 3), torch.zeros(len(classes), 3)):
                embeddings.requires_grad_()
                value = loss(embeddings, torch.tensor(classes))
                assert value.item() == 0 and value.requires_grad
                value.backward()
                assert embeddings.grad is not None and (embeddings.grad == 0).all()
            assert loss(torch.full((len(classes), 3), torch.nan), torch.tensor(classes)).isnan()

    def test_bfloat16_autocast_changes_nothing(self, options):
        loss = self.build(options, SMOOTH["unequal"].dim)
        for embeddings, labels in SMOOTH["unequal"].draws():
            expected = value_and_gradient(loss, embeddings.float(), labels)
            actual = value_and_gradient(loss, embeddings.float(), labels, autocast=True)
            assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])

    def test_bfloat16_embeddings_are_computed_in_float32(self, options):
        loss = self.build(options, SMOOTH["unequal"].dim)
        for embeddings, labels in SMOOTH["unequal"].draws():
            value, gradient = value_and_gradient(loss, embeddings.bfloat16(), labels, autocast=True)
            assert value.dtype == torch.float32 and gradient.isfinite().all()
            expected = self.oracle(loss, options, embeddings.bfloat16(), labels)
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)

    def test_two_calls_agree_and_leave_the_inputs_alone(self, options, cases):
        for loss, embeddings, labels in cases(ANY):
            kept = embeddings.clone(), labels.clone()
            first, second = (value_and_gradient(loss, embeddings, labels) for _ in range(2))
            assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
            loss(embeddings, labels)
            assert torch.equal(embeddings, kept[0]) and torch.equal(labels, kept[1])

    def test_order_of_the_batch_does_not_matter(self, options, cases):
        for loss, embeddings, labels in cases(ANY):
            order = self.permutation(labels)
            value, permuted = loss(embeddings, labels), loss(embeddings[order], labels[order])
            torch.testing.assert_close(permuted, value, rtol=1e-12, atol=1e-13)

    def test_nan_anywhere_gives_nan(self, options):
        labels = torch.tensor(self.labels_that_count)
        loss = self.build(options, 2)
        for index in range(2 * len(labels)):
            embeddings = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(index))
            assert not loss(embeddings, labels).isnan()
            embeddings.view(-1)[index] = torch.nan
            assert loss(embeddings, labels).isnan()

    def test_non_contiguous_inputs(self, options):
        embeddings, labels = SMOOTH["huge_scale"].make(0)
        loss = self.build(options, SMOOTH["huge_scale"].dim).double()
        strided = embeddings.t().contiguous().t(), torch.stack([labels, labels + 1], 1)[:, 0]
        assert not strided[0].is_contiguous() and not strided[1].is_contiguous()
        torch.testing.assert_close(loss(*strided), loss(embeddings, labels), rtol=1e-12, atol=0)

    def test_wrong_shapes_and_types_are_refused(self, options):
        loss, whole = self.build(options, 3), torch.int64
        wrong = [((4,), (4,)), ((2, 4, 3), (2,)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((0, 3), (0,)), ((4, 0), (4,))]
        for shape, of_labels in wrong:
            with pytest.raises(ValueError, match=r"a loss takes embeddings \[m, d\] and labels \[m\]"):
                loss(torch.zeros(shape), torch.zeros(of_labels, dtype=whole))
        for dtype, of_labels in ((torch.float32, torch.float32), (torch.float32, torch.bool), (whole, whole)):
            with pytest.raises(ValueError, match="embeddings of floats and labels of whole numbers"):
                loss(torch.zeros(4, 3, dtype=dtype), torch.zeros(4, dtype=of_labels))
        with pytest.raises(ValueError, match=r"a loss takes embeddings \[m, d\] as a tensor, not as ndarray"):
            loss(np.zeros((4, 3)), torch.arange(4))
        for labels in (["a", "b", "b", "a"], np.array(["a", "b", "b", "a"]), None, [0, 1, 2**70, 0]):
            with pytest.raises(ValueError, match=r"a loss takes labels \[m\] of whole numbers, as a tensor"):
                loss(torch.zeros(4, 3), labels)

    def test_labels_of_any_kind_of_whole_numbers(self, options):
        embeddings, labels = SMOOTH["unequal"].make(0)
        loss = self.build(options, SMOOTH["unequal"].dim).double()
        expected = loss(embeddings, labels)
        kinds = [labels.tolist(), labels.numpy(), labels.numpy().astype(np.uint64), labels.to(torch.uint64)]
        assert all(torch.equal(loss(embeddings, kind), expected) for kind in [*kinds, labels.int(), labels.byte()])
