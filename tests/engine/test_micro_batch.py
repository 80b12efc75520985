"""Gradient caching: the gradients of the whole batch, whatever is drawn, counted or rounded on the way.

Several processes: test_gather.py.
"""

import copy

import pytest
import torch
from torch import nn

from dml.engine.micro_batch import embed_in_chunks
from dml.losses.nra import NRALoss
from tests.engine.conftest import OwnWeights, make_data, make_learner, make_trainer
from tests.losses.table import EVERY, build

LABELS = torch.arange(12) // 3


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))


def images():
    return torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def chunked(embedder, x, size):
    """The reference: every chunk with its graph, all at once."""
    return torch.cat([embedder(chunk) for chunk in x.split(size)])


def whole(embedder, x, size):
    return embedder(x)


def gradients(embed, embedder, loss, size=5, autocast=False):
    """Loss and gradients of copies, and the copy of the network; seeded."""
    embedder, loss = copy.deepcopy((embedder, loss))
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(embed(embedder, images(), size), LABELS)
    value.backward()
    return value.detach(), [p.grad for p in (*embedder.parameters(), *loss.parameters())], embedder


def assert_same(actual, expected, tolerance=1e-5):
    """The tolerance is relative to the largest gradient: that of the head's bias is zero, but for rounding."""
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in expected[1] if gradient is not None)
    assert largest > 0
    for gradient, wanted in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=tolerance * largest)
    torch.testing.assert_close(actual[2].state_dict(), expected[2].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 5, 6])
@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_the_whole_batch(name, size):
    parts = network(), build(name, embedding_dim=3, num_classes=4)
    tolerance = 1e-4 if name == "s2sd" else 3e-5  # softmaxes of sharp similarities: float64 agrees to 1e-10 (test_ddp)
    assert_same(gradients(embed_in_chunks, *parts, size), gradients(whole, *parts), tolerance=tolerance)


class Drawing(NRALoss):
    """A loss that draws random numbers between the two passes."""

    def forward(self, embeddings, labels):
        torch.rand(1)
        return super().forward(embeddings, labels)


def test_dropout_draws_the_same_in_both_passes_and_nothing_more():
    parts = network(nn.Dropout(0.5)), Drawing()
    actual = gradients(embed_in_chunks, *parts)
    after = torch.get_rng_state()
    assert_same(actual, gradients(chunked, *parts))
    assert torch.equal(after, torch.get_rng_state())


def test_batch_norm_takes_statistics_of_chunks_and_counts_them_once():
    parts = network(nn.BatchNorm2d(6)), NRALoss()
    actual = gradients(embed_in_chunks, *parts)
    assert_same(actual, gradients(chunked, *parts))  # the buffers too
    assert actual[2][1].num_batches_tracked == 3


def test_frozen_batch_norm_is_exact():
    embedder = network(nn.BatchNorm2d(6))
    embedder[1].eval().requires_grad_(False)
    assert_same(gradients(embed_in_chunks, embedder, NRALoss()), gradients(whole, embedder, NRALoss()))


def test_under_autocast_both_passes_round_alike():
    parts = network(nn.Dropout(0.5)), NRALoss()
    # The reference sums the gradients of its chunks in bfloat16, we in float32.
    expected = gradients(chunked, *parts, autocast=True)
    assert_same(gradients(embed_in_chunks, *parts, autocast=True), expected, tolerance=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_chunk_has_a_graph_at_a_time(dtype):
    seen = []

    class Seen(nn.Module):
        def forward(self, x):
            seen.append((len(x), torch.is_grad_enabled(), x.dtype))
            return x

    gradients(embed_in_chunks, network(Seen()), NRALoss(), autocast=dtype == torch.bfloat16)
    assert seen == [(n, graph, dtype) for graph in (False, True) for n in (5, 5, 2)]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}])
def test_training_is_that_of_the_plain_step(tmp_path, options):
    ended = []
    for micro_batch in (None, 3, 100):
        learner = make_learner(micro_batch=micro_batch, loss=OwnWeights())
        make_trainer(tmp_path, 5, **options).fit(learner, make_data())
        ended.append(learner.state_dict())
    assert not torch.equal(ended[0]["embedder.head.weight"], make_learner().embedder.head.weight)
    torch.testing.assert_close(ended[1], ended[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ended[2], ended[0], rtol=0, atol=0)
