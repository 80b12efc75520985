"""An embedding in groups of columns: what training sees, and what is searched with."""

import math

import pytest
import torch

from dml.models.backbones import create_backbone
from dml.models.groups import GroupedEmbedder
from dml.testing.contracts import EmbedderContract
from tests.models.test_embedder import Pixels, images


def make(**given):
    torch.manual_seed(0)
    return GroupedEmbedder(**{"backbone": Pixels(), "dim": 6, "sizes": [1, 2, 3], **given}).double()


class TestGroups(EmbedderContract):
    dim = 6

    def build(self):
        torch.manual_seed(0)
        return GroupedEmbedder(backbone=create_backbone(name="convnet4"), dim=6, sizes=[2, 4], detached=True)


PIXELS = torch.rand(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("weights", "expected"), [(None, (1 / 6, 2 / 6, 3 / 6)), ([3.0, 1.0, 2.0], (3, 1, 2))])
def test_each_group_is_searched_with_at_a_length_of_its_own(weights, expected):
    model = make(weights=weights)
    columns = model(PIXELS)
    found, start = model.join(columns).tolist(), 0
    for width, weight in zip((1, 2, 3), expected, strict=True):
        for row, column in zip(found, columns.tolist(), strict=True):
            own = column[start : start + width]
            assert row[start : start + width] == pytest.approx([weight * v / math.hypot(*own) for v in own], rel=1e-12)
        start += width


def test_copies_are_made_of_the_same_weights_without_bias_and_move_the_layer_alone():
    model = make(detached=True)
    assert model.groups == (1, 2, 3, 1, 2, 3) and model.dim == 6
    x = PIXELS.clone().requires_grad_()
    columns = model(x)
    torch.testing.assert_close(columns[:, 6:], columns[:, :6] - model.head.bias)
    torch.testing.assert_close(model.join(columns), make().join(columns[:, :6]))
    columns[:, 6:].sum().backward()
    assert x.grad is None or (x.grad == 0).all()
    assert model.head.weight.grad.abs().sum() > 0 and model.head.bias.grad.abs().sum() == 0


def test_training_may_see_unit_groups():
    columns = make(normalize=True)(PIXELS)
    for part in columns.split([1, 2, 3], dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(4, dtype=torch.float64))


def test_the_penalty_by_hand():
    model = make(dim=2, sizes=[1, 1], unit_weights=5.0)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        model.head.weight[1, :3] = 2.0
    # Of 12 features 3 have a weight of length 2 to the second group: (4 - 1)^2 each.
    assert model.penalty().item() == pytest.approx(5 * 3 * 9 / 12)
    assert make().penalty() == 0


def test_it_begins_with_a_checkpoint_of_its_kind(tmp_path):
    first = GroupedEmbedder(backbone=create_backbone(name="convnet4"), dim=4, sizes=[1, 3])
    state = {f"embedder.{name}": value for name, value in first.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    path = str(tmp_path / "best.ckpt")
    second = GroupedEmbedder(backbone=create_backbone(name="convnet4"), dim=4, sizes=[1, 3], checkpoint_path=path)
    with torch.no_grad():
        assert torch.equal(first.eval()(images()), second.eval()(images()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sizes": [1, 2]}, r"embedder\.sizes=\[1, 2\] add up to 3, which is not embedder\.dim=6"),
        ({"weights": [1.0, 2.0]}, r"embedder\.weights=\[1\.0, 2\.0\] .* each of 3 groups"),
    ],
)
def test_what_does_not_fit_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        make(**given)
