"""Learners that see the maps in a network's middle through masks of their own."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from dml.models.attention import AttentionEmbedder
from dml.models.backbones import create_backbone
from dml.testing.contracts import EmbedderContract
from tests.models.test_embedder import images


class InPieces(nn.Module):
    """Three convolutions, as a network that can be cut."""

    pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 28, 28)}
    head_hidden_size = 7

    def __init__(self):
        super().__init__()
        widths = {"first": (3, 4), "second": (4, 5), "third": (5, 7)}
        self.blocks = nn.ModuleDict(
            {
                k: nn.Sequential(nn.Conv2d(*io, 3, padding=1), nn.BatchNorm2d(io[1]), nn.ReLU())
                for k, io in widths.items()
            }
        )
        self.blocks["pool"] = nn.MaxPool2d(2)

    def pieces(self):
        return list(self.blocks.items())

    def forward_head(self, x, pre_logits=False):
        return x.mean(dim=(2, 3))

    def forward(self, x):
        for piece in self.blocks.values():
            x = piece(x)
        return self.forward_head(x)


def make(**given):
    torch.manual_seed(0)
    options = {"backbone": InPieces(), "dim": 6, "learners": 3, "cut": "first", "attention_to": "second"}
    return AttentionEmbedder(**{**options, **given})


class TestAttention(EmbedderContract):
    dim = 6

    def build(self):
        return make()


def test_a_learner_sees_the_maps_times_its_mask():
    model = make().eval()
    with torch.no_grad():
        columns = model(images())
        x = ((images() / 255) - model.mean) / model.std
        shared = model.backbone.blocks["first"](x)
        masks = model.masks(model.trunk(shared)).sigmoid()
        for k in range(3):
            seen = shared * masks[:, 4 * k : 4 * (k + 1)]
            for name in ("second", "third", "pool"):
                seen = model.backbone.blocks[name](seen)
            own = model.head(seen.mean(dim=(2, 3)))
            torch.testing.assert_close(columns[:, 2 * k : 2 * (k + 1)], own, rtol=1e-4, atol=1e-5)
    assert model.groups == (2, 2, 2) and model.dim == 6
    lengths = model.join(columns).unflatten(1, (3, 2)).norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones(6, 3))


def test_the_trunk_begins_as_a_copy_and_learns_by_itself():
    model = make()
    before = model.backbone.blocks["second"][0].weight
    assert torch.equal(model.trunk[0][0].weight, before) and model.trunk[0][0].weight is not before


def test_frozen_batch_norms_are_those_of_the_trunk_too():
    model = make(freeze_bn=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 and not any(norm.training or norm.weight.requires_grad for norm in norms)


def test_the_papers_network():
    model = AttentionEmbedder(backbone=create_backbone(name="googlenet"), dim=512)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes == {"backbone": 5599904, "head": 65600, "trunk": 2653088, "masks": (832 + 1) * 480 * 8}
    assert model.groups == (64,) * 8


@pytest.mark.parametrize(
    ("name", "cut", "attention_to"),
    [
        ("test_resnet", "maxpool", "layer1"),
        ("test_efficientnet", "bn1", "blocks.0"),
        ("test_convnext", "stem", "stages.0"),
    ],
)
def test_a_network_of_timm_is_cut_between_its_stages(name, cut, attention_to):
    """A learner whose mask lets everything through sees what the network sees, whatever the statistics of its norms."""
    torch.manual_seed(0)
    backbone = create_backbone(name=name)
    model = AttentionEmbedder(backbone=backbone, dim=6, learners=2, cut=cut, attention_to=attention_to)
    pictures = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        model.train()(pictures)  # moves the statistics of batch norms
        model.masks.weight.zero_()
        model.masks.bias.fill_(50.0)
        model.eval()
        columns = model(pictures)
        features = backbone(model.scaled(pictures))
    torch.testing.assert_close(columns, model.head(features).repeat(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dim": 7}, r"embedder\.dim=7 must be a multiple of embedder\.learners=3|embedder\.dim=7 is not possible"),
        (
            {"backbone": create_backbone(name="test_vit")},
            r"embedder=attention needs .* VisionTransformer has no pieces",
        ),
        ({"cut": "layer1"}, r"embedder\.cut=layer1 is not possible: it must be one of first, second, third, pool"),
        ({"attention_to": "first"}, r"embedder\.attention_to=first does not come after embedder\.cut=first"),
        (
            {"attention_to": "pool"},
            r"embedder\.attention_to .* \[14, 14\] places and those of embedder\.cut \[28, 28\]",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        make(**given)
