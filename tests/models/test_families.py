"""One network of each family of timm that people use: made, one step of training, other weights afterwards."""

import pytest
import torch

from dml.models.backbones import create_backbone, layer_scales
from dml.models.embedder import Embedder

SMALL = {"depth": 1, "embed_dim": 64, "num_heads": 2}
# Name -> side of the images, and options that make a network of the family small where timm has no small one.
FAMILIES = {
    "test_vit": (32, {}),
    "vit_small_patch14_dinov2": (28, {**SMALL, "img_size": 28}),
    "vit_small_patch16_dinov3": (32, SMALL),
    "vit_base_patch16_clip_224": (32, {**SMALL, "img_size": 32}),
    "vit_base_patch16_siglip_224": (32, {**SMALL, "img_size": 32}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}),
    "test_convnext": (64, {}),
    "test_efficientnet": (64, {}),
    "test_resnet": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "resnetv2_50": (64, {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step(name):
    size, options = FAMILIES[name]
    torch.manual_seed(0)
    model = Embedder(backbone=create_backbone(name=name, **options), dim=4).train()
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [weight.clone() for weight in model.parameters()]
    embeddings = model(images)
    assert embeddings.shape == (4, 4) and embeddings.isfinite().all()
    # The first two images are of one class.
    loss = (embeddings[0] - embeddings[1]).square().sum() - (embeddings[0] - embeddings[2]).square().sum()
    loss.backward()
    optimizer.step()
    without = [n for n, weight in model.named_parameters() if weight.grad is None]
    assert not without, "several processes would wait for these gradients"
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
    assert model.eval()(images).isfinite().all()
    scales = layer_scales(model.backbone, 0.5)
    assert max(scales.values()) == 1 and min(scales.values()) < 1


def test_a_network_that_does_not_know_its_layers_is_told():
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay=0\.5 .* does not say what its layers are"):
        layer_scales(torch.nn.Linear(2, 2), 0.5)
