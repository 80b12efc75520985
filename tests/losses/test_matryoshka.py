"""Any loss on the first dimensions too, arXiv:2205.13147."""

import pytest
import torch

from dml.losses.contrastive import ContrastiveLoss
from dml.losses.cross_entropy import CrossEntropyLoss
from dml.losses.matryoshka import MatryoshkaLoss
from dml.losses.memory import CrossBatchMemory
from dml.losses.nra import NRALoss
from dml.losses.pddm import PDDMLoss
from dml.losses.per_group import PerGroupLoss
from dml.losses.proxy_anchor import ProxyAnchorLoss
from tests.losses import Batch, by_weights
from tests.losses.conftest import LossContract


class TestMatryoshka(LossContract):
    by_blocks = False  # those of the inner loss are its own
    variants = ({}, {"normalize": False}, {"weights": (0.5, 2.0)})

    def build(self, options, dim):
        sizes = [max(1, dim // 2), dim] if dim > 1 else [1]
        weights = options.get("weights", (1.0, 1.0))[: len(sizes)]
        return MatryoshkaLoss(
            loss=ContrastiveLoss(), embedding_dim=dim, sizes=sizes, **{**options, "weights": weights}
        )  # fmt: skip

    def oracle(self, loss, options, embeddings, labels):
        return by_weights.matryoshka(loss, embeddings, labels, options.get("normalize", True))


@pytest.mark.parametrize("kind", [ProxyAnchorLoss, CrossEntropyLoss])
def test_the_first_columns_of_weights_are_those_of_a_loss_of_that_width(kind):
    torch.manual_seed(0)
    whole = kind(embedding_dim=6, num_classes=4).double()
    parts = {size: kind(embedding_dim=size, num_classes=4).double() for size in (2, 3, 6)}
    for size, part in parts.items():
        for mine, theirs in zip(part.parameters(), whole.parameters(), strict=True):
            mine.data.copy_(theirs.data[..., :size] if theirs.ndim > 1 else theirs.data)
    loss = MatryoshkaLoss(loss=whole, embedding_dim=6, sizes=[2, 3, 6], weights=[1, 2, 3], normalize=False)
    x, labels = Batch((3, 2, 2, 1), 6).make(0)
    x = x.double().requires_grad_()
    found = loss(x, labels)
    y = x.detach().clone().requires_grad_()
    wanted = sum(w * part(y[:, :size], labels) for (size, part), w in zip(parts.items(), (1, 2, 3), strict=True))
    torch.testing.assert_close(found, wanted)
    found.backward()
    wanted.backward()
    torch.testing.assert_close(x.grad, y.grad)
    for i, theirs in enumerate(whole.parameters()):
        total = torch.zeros_like(theirs)
        for size, part in parts.items():
            grad = list(part.parameters())[i].grad
            (total[..., :size] if theirs.ndim > 1 else total).add_(grad)
        torch.testing.assert_close(theirs.grad, total)


@pytest.mark.parametrize(("dim", "sizes"), [(512, [32, 64, 128, 256, 512]), (48, [48]), (2, [2]), (96, [48, 96])])
def test_sizes_by_default(dim, sizes):
    assert list(MatryoshkaLoss(loss=NRALoss(), embedding_dim=dim).sizes) == sizes


def test_inside_of_a_memory():
    loss = MatryoshkaLoss(loss=ContrastiveLoss(), embedding_dim=4, sizes=[2, 4])
    memory = CrossBatchMemory(loss=loss, size=50, start_step=0, embedding_dim=4).double()
    earlier, x = Batch((5, 4, 3), 4).make(0), Batch((5, 4, 3), 4).make(1)
    memory(*earlier)
    both, classes = torch.cat([x[0], earlier[0]]), torch.cat([x[1], earlier[1]])
    torch.testing.assert_close(memory(*x), loss(both, classes, anchors=len(x[1])))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sizes": [2, 9]}, r"loss\.sizes=\[2, 9\] is not possible.*the 4 dimensions"),
        ({"sizes": [4, 2]}, r"loss\.sizes="),
        ({"sizes": []}, r"loss\.sizes="),
        ({"sizes": [2, 4], "weights": [1]}, r"loss\.weights=\[1\] is not possible: it must be 2 numbers"),
        ({"weights": [-1]}, r"loss\.weights="),
        (
            {"loss": PerGroupLoss(loss=NRALoss(), groups=[2, 2])},
            r"loss=PerGroupLoss is not possible: it has groups",
        ),
        ({"loss": CrossBatchMemory(loss=NRALoss(), embedding_dim=4)}, r"loss=memory loss@loss\.loss=matryoshka"),
        ({"loss": PDDMLoss(embedding_dim=4)}, r"loss\.loss=PDDMLoss is not possible: its layers"),
        ({"embedding_dim": 0}, r"loss\.embedding_dim=0"),
    ],
)
def test_what_is_not_possible(given, said):
    with pytest.raises(ValueError, match=said):
        MatryoshkaLoss(**{"loss": NRALoss(), "embedding_dim": 4, **given})


def test_other_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"loss\.embedding_dim=4 is not possible: it must be the embeddings' 3"):
        MatryoshkaLoss(loss=NRALoss(), embedding_dim=4)(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
