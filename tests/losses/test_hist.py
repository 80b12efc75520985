"""HIST."""

import copy

import pytest
import torch
from torch import nn

from dml.losses.hist import HISTLoss
from tests.losses import SMOOTH, Batch, assert_slopes_close, by_proxies, value_and_gradient
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestHIST(LossContract):
    by_blocks = False
    variants = ({"hidden": 5}, {"hidden": 3, "tau": 4.0, "alpha": 2.0, "ce_weight": 0.3})

    def build(self, options, dim):
        torch.manual_seed(100)  # no seed of a batch: the weights would be its embeddings
        loss = HISTLoss(embedding_dim=dim, num_classes=CLASSES, **options)
        # In a batch of one class the batch norm gives its bias, and at 0 the function behind it has a kink.
        nn.init.normal_(loss.norm.bias)
        return loss

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.hist(loss, embeddings, labels, **options)

    def test_gradient_is_the_oracles(self, options, cases):
        """In one dimension the gradient is a thousandth of a loss of hundreds: less than its differences can tell."""
        for loss, embeddings, labels in cases({k: batch for k, batch in SMOOTH.items() if batch.dim > 1}):
            gradient = value_and_gradient(loss, embeddings, labels)[1]
            step = 1e-7 * embeddings.norm(dim=1).median().item()
            assert_slopes_close(gradient, self.near(loss, options, embeddings, labels), embeddings, step)


def test_its_weights():
    torch.manual_seed(0)
    loss = HISTLoss(embedding_dim=60, num_classes=50, hidden=8)
    shapes = {name: tuple(weight.shape) for name, weight in loss.named_parameters()}
    assert shapes["means"] == shapes["log_vars"] == (50, 60)
    assert shapes["first.weight"] == (8, 60) and shapes["second.weight"] == (50, 8) and shapes["norm.weight"] == (8,)
    assert loss.means.std().item() == pytest.approx(0.2, rel=0.05)


def test_its_batch_norm_is_torchs():
    loss = HISTLoss(embedding_dim=4, num_classes=3, hidden=6)
    norm: nn.BatchNorm1d = copy.deepcopy(loss.norm)
    for seed in range(2):
        values = 3 + torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(loss._normalised(values), norm(values))
        torch.testing.assert_close(loss.norm.state_dict(), norm.state_dict())
    torch.testing.assert_close(loss.eval()._normalised(values), norm.eval()(values))


def test_variances_below_one_have_no_gradient():
    x, labels = Batch((3, 2, 2), 4).make(0)
    loss = HISTLoss(embedding_dim=4, num_classes=3, hidden=4).double()
    loss(x, labels).backward()
    assert torch.equal(loss.log_vars.grad != 0, loss.log_vars > 0)


def test_a_batch_of_one_is_refused_in_training():
    loss, x = HISTLoss(embedding_dim=4, num_classes=3), torch.ones(1, 4)
    with pytest.raises(ValueError, match="hist needs batches of 2 images or more"):
        loss(x, torch.tensor([0]))
    assert loss.eval()(x, torch.tensor([0])).isfinite()


@pytest.mark.parametrize(
    ("key", "value"),
    [("embedding_dim", 0), ("num_classes", 0), ("tau", 0.0), ("alpha", 0.0), ("ce_weight", -1.0), ("hidden", 0)],
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        HISTLoss(**{"embedding_dim": 3, "num_classes": CLASSES, key: value})


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        HISTLoss(embedding_dim=3, num_classes=CLASSES)(torch.randn(2, 3), torch.tensor([0, CLASSES]))
