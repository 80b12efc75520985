"""Position-dependent deep metric, arXiv:1610.08904."""

import pytest
import torch

from dml.losses.pddm import PDDMLoss
from tests.losses import Batch, by_weights
from tests.losses.conftest import LossContract


class TestPDDM(LossContract):
    variants = ({}, {"scope": "class", "alpha": 2.0}, {"scope": "pair", "beta": 3.0, "embedding_weight": 2.0})
    empty_batches = ((0, 0, 0), (2, 0, 1), (0, 1), (0,))

    def build(self, options, dim):
        torch.manual_seed(100)
        return PDDMLoss(embedding_dim=dim, **options)

    def oracle(self, loss, options, embeddings, labels):
        return by_weights.pddm(loss, embeddings, labels, **options)

    def leaves_open(self, loss, embeddings):
        """Of equally similar members the first counts: where they are equal up to rounding, rounding decides."""
        first, second = torch.triu_indices(len(embeddings), len(embeddings), 1)
        z = torch.nn.functional.normalize(embeddings.double(), dim=1)
        gaps = PDDMLoss.score(loss.double(), z, first, second).sort().values.diff()
        loss.to(embeddings.dtype)
        return bool((gaps < 1e-6).any())


def test_its_weights():
    loss = PDDMLoss(embedding_dim=5)
    assert {name: tuple(weight.shape) for name, weight in loss.named_parameters()} == {
        **{f"{layer}.{kind}": size for layer in "uv" for kind, size in (("weight", (5, 5)), ("bias", (5,)))},
        **{"c.weight": (5, 10), "c.bias": (5,), "s.weight": (1, 5), "s.bias": (1,)},
    }
    assert not any(layer.bias.any() for layer in (loss.u, loss.v, loss.c, loss.s))


def test_gradients_at_ties_are_finite():
    for kind in ((0, 1, 2, 3, 4, 5), (1, 2)):
        x, labels = Batch((3, 2, 1), 3, 1.0, kind).make(0)
        loss = PDDMLoss(embedding_dim=3).double()
        leaf = x.requires_grad_()
        loss(leaf, labels).backward()
        assert leaf.grad.isfinite().all()


def test_dropout_is_drawn_by_the_step_and_in_training_alone():
    x, labels = Batch((3, 2, 2), 16).make(0)
    loss = PDDMLoss(embedding_dim=16, dropout=0.5, scope="pair").double()
    state = {
        key: torch.as_tensor(value) if torch.is_tensor(value) else dict(value)
        for key, value in loss.state_dict().items()
    }
    first, second = loss(x, labels), loss(x, labels)
    torch.rand(1)  # not by torch's own generator
    loss.load_state_dict(state)
    assert torch.equal(loss(x, labels), first) and not torch.equal(first, second)
    torch.testing.assert_close(
        loss.eval()(x, labels), by_weights.pddm(loss, x, labels, scope="pair"), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_dim", 0),
        ("alpha", 0.0),
        ("beta", 0.0),
        ("embedding_weight", -1.0),
        ("scope", "all"),
        ("dropout", 1.0),
    ],
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        PDDMLoss(**{"embedding_dim": 3, key: value})


def test_other_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=3 is not possible: it must be the embeddings' 4"):
        PDDMLoss(embedding_dim=3)(torch.randn(2, 4), torch.tensor([0, 1]))
