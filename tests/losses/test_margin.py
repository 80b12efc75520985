"""Margin loss and distance-weighted sampling, arXiv:1706.07567."""

import pytest
import torch

from dml.losses.margin import MarginLoss
from dml.losses.memory import CrossBatchMemory
from tests.losses import SMOOTH, Batch, assert_slopes_close, by_proxies, value_and_gradient
from tests.losses.conftest import LossContract

CLASSES = 7


class TestMargin(LossContract):
    variants = ({}, {"alpha": 0.5, "beta": 0.9, "nu": 0.3, "cutoff": 0.2, "upper": 1.8, "seed": 3})
    empty_batches = ((0, 0, 0), (2, 0, 1), (0,))

    def build(self, options, dim):
        loss = MarginLoss(num_classes=CLASSES, **options).eval()  # so that each call is of the same step
        with torch.no_grad():
            loss.beta += 0.1 * torch.arange(CLASSES)
        return loss

    def oracle(self, loss, options, embeddings, labels):
        return by_proxies.margin(loss, embeddings, labels, **options)

    def near(self, loss, options, embeddings, labels):
        return lambda x: by_proxies.margin(loss, x, labels, **options, held=embeddings)

    def permutation(self, labels):
        return torch.arange(len(labels))  # draws belong to places


def drawn(loss, x, labels, **given):
    return [tuple(each) for each in loss.draw(x, labels, **given).T.tolist()]


@pytest.mark.parametrize("path", ["whole", "blocks"], indirect=True)
def test_draws_and_weights_are_the_oracles(path):
    for name in ("unequal", "one_dimension", "singletons", "huge_scale"):
        for x, labels in SMOOTH[name].draws():
            loss = MarginLoss(num_classes=CLASSES, seed=1)
            for loss.step in range(3):
                assert drawn(loss, x, labels) == by_proxies.margin_triplets(x, labels, 1, loss.step)
                assert drawn(loss, x, labels, anchors=5) == by_proxies.margin_triplets(x, labels, 1, loss.step, 5)
            expected = torch.zeros(len(x), len(x), dtype=torch.float64)
            for i in range(len(x)):
                if (labels != labels[i]).any():
                    for n, probability in by_proxies.margin_weights(x, labels, i):
                        expected[i, n] = probability
            torch.testing.assert_close(loss.weights(x, labels), expected, rtol=1e-10, atol=1e-15)


def test_draws_follow_the_weights():
    x, labels = Batch((100, 4, 3), 3).make(0)
    loss, i = MarginLoss(num_classes=3), int((labels == 0).nonzero()[0])
    counts = torch.zeros(len(x), dtype=torch.float64)
    for loss.step in range(40):
        anchor, _, negative = loss.draw(x, labels)
        counts += torch.bincount(negative[anchor == i], minlength=len(x))
    assert counts.sum() == 40 * 99
    torch.testing.assert_close(counts / counts.sum(), loss.weights(x, labels)[i], rtol=0, atol=0.03)


def test_in_many_dimensions_the_near_negatives_are_drawn():
    # Positives at about 0.73 would hide all weights if they took part in the largest (log weights differ by 300).
    g = torch.Generator().manual_seed(0)
    centre = torch.nn.functional.normalize(torch.randn(8, 512, generator=g), dim=1)
    x = centre.repeat_interleave(4, 0) + 0.6 / 512**0.5 * torch.randn(32, 512, generator=g)
    weights = MarginLoss(num_classes=8).weights(x, torch.arange(32) // 4)
    d = torch.cdist(torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(x, dim=1))
    negative = torch.arange(32)[:, None] // 4 != torch.arange(32) // 4
    nearest = d.masked_fill(~negative, torch.inf).argmin(dim=1)
    assert torch.equal(weights.argmax(dim=1), nearest) and (weights.amax(dim=1) > 2 / 28).all()


def test_all_that_are_far_are_drawn_alike():
    x = torch.eye(6)  # sqrt 2 apart
    weights = MarginLoss(num_classes=3).weights(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert weights[0].tolist() == [0, 0, 0.25, 0.25, 0.25, 0.25]


def test_draws_go_on_where_they_were_saved():
    x, labels = SMOOTH["unequal"].make(0)
    first, other = MarginLoss(num_classes=CLASSES), MarginLoss(num_classes=CLASSES, seed=1)
    values = [first(x, labels).item() for _ in range(3)]
    assert len({*values, other(x, labels).item()}) == 4, values
    second, third = MarginLoss(num_classes=CLASSES), MarginLoss(num_classes=CLASSES)
    second(x, labels)
    third.load_state_dict(second.state_dict())
    assert third(x, labels).item() == values[1]
    assert third.eval()(x, labels).item() == third(x, labels).item() == values[2]


def test_in_a_memory():
    inner = MarginLoss(num_classes=3)
    loss = CrossBatchMemory(loss=inner, size=12, start_step=0, embedding_dim=4).double()
    x, labels = Batch((5, 4, 3), 4).make(0)
    loss(x, labels)
    others, both = x.clone(), torch.cat([labels, labels])
    x = x.roll(1, 0) + 0.1

    def expected(batch):
        held = torch.cat([x, others])
        return by_proxies.margin(inner, torch.cat([batch, others]), both, anchors=12, held=held)

    value, gradient = value_and_gradient(loss, x, labels)
    torch.testing.assert_close(value, expected(x), rtol=1e-10, atol=0)
    assert_slopes_close(gradient, expected, x, 1e-7)
    assert inner.step == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_classes", 0), ("alpha", 0.0), ("beta", 0.0), ("nu", -1.0)),
        *(("cutoff", 0.0), ("cutoff", 1.4), ("upper", 2.0), ("seed", -1)),
    ],
)
def test_what_is_not_possible_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"loss\.{key}="):
        MarginLoss(**{"num_classes": CLASSES, key: value})


def test_labels_beyond_its_classes_are_refused():
    with pytest.raises(ValueError, match=r"loss\.num_classes=7 is not possible"):
        MarginLoss(num_classes=CLASSES)(torch.randn(2, 3), torch.tensor([0, 7]))
