"""Softmax cross entropy of a linear classifier, the baseline of section IV-B of arXiv:1909.09427."""

import math

import pytest
import torch
from torch import nn

from dml.losses.cross_entropy import CrossEntropyLoss
from tests import oracles
from tests.losses import SMOOTH, TIED, assert_gradient_close, value_and_gradient
from tests.losses.conftest import LossContract

CLASSES = 7  # one more than any batch has, so that a class without samples is there too


class TestCrossEntropy(LossContract):
    by_blocks = False

    def build(self, options, dim):
        torch.manual_seed(0)
        return CrossEntropyLoss(embedding_dim=dim, num_classes=CLASSES)

    def oracle(self, loss, options, embeddings, labels):
        return oracles.cross_entropy(embeddings, labels, loss.classifier.weight, loss.classifier.bias)


def test_two_samples_by_hand():
    loss = CrossEntropyLoss(embedding_dim=1, num_classes=2)
    with torch.no_grad():
        loss.classifier.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        loss.classifier.bias.copy_(torch.tensor([0.0, 3.0]))
    value = loss(torch.tensor([[2.0], [0.5]]), torch.tensor([0, 1]))
    # The logits are (2, 1) and (0.5, 2.5).
    expected = (math.log(1 + math.exp(1 - 2)) + math.log(1 + math.exp(0.5 - 2.5))) / 2
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [*SMOOTH.values(), *TIED.values()])
def test_gradients_of_embeddings_and_classifier_are_exact(batch):
    embeddings, labels = batch.make(0)
    torch.manual_seed(0)
    loss = CrossEntropyLoss(embedding_dim=batch.dim, num_classes=CLASSES).double()
    gradient = value_and_gradient(loss, embeddings, labels)[1]
    weight, bias = loss.classifier.weight, loss.classifier.bias
    differences = [
        (gradient, lambda x: oracles.cross_entropy(x, labels, weight, bias), embeddings),
        (weight.grad, lambda x: oracles.cross_entropy(embeddings, labels, x, bias), weight),
        (bias.grad, lambda x: oracles.cross_entropy(embeddings, labels, weight, x), bias),
    ]
    for actual, function, point in differences:
        assert_gradient_close(actual, oracles.numerical_gradient(function, point, 1e-6))


def test_large_logits_do_not_overflow():
    embeddings, labels = SMOOTH["unequal"].make(0)
    loss = CrossEntropyLoss(embedding_dim=SMOOTH["unequal"].dim, num_classes=CLASSES)
    embeddings = embeddings.float() * 1e4
    value, gradient = value_and_gradient(loss, embeddings, labels)
    expected = oracles.cross_entropy(embeddings, labels, loss.classifier.weight, loss.classifier.bias)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("label", [-100, -1, CLASSES])
def test_a_label_that_is_no_class_is_refused(label):
    # PyTorch's own cross entropy would leave out -100 without a word.
    loss = CrossEntropyLoss(embedding_dim=3, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        loss(torch.randn(2, 3), torch.tensor([0, label]))
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=3 is not possible: it must be the embeddings' 4"):
        loss(torch.randn(2, 4), torch.tensor([0, 1]))


def test_embeddings_of_another_type_than_the_classifier():
    loss = CrossEntropyLoss(embedding_dim=3, num_classes=2)
    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(loss(x.double(), labels), loss(x, labels).double(), rtol=1e-6, atol=0)
    assert loss.bfloat16()(x.bfloat16(), labels).dtype == torch.float32


def test_the_classifier_is_linear_with_a_bias_and_trains():
    loss = CrossEntropyLoss(embedding_dim=3, num_classes=5)
    assert isinstance(loss.classifier, nn.Linear) and loss.classifier.bias is not None
    assert loss.classifier.weight.shape == (5, 3)
    assert all(parameter.requires_grad for parameter in loss.parameters())
    assert sum(parameter.numel() for parameter in loss.parameters()) == 5 * 3 + 5


def test_arguments_have_names():
    with pytest.raises(TypeError):
        CrossEntropyLoss(3, 5)
