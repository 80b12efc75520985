"""The small networks, trained from scratch."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from dml.data import digits
from dml.models.backbones import create_backbone

FEATURES = {"convnet": 512, "convnet4": 64}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("size", [16, 28, 32, 45])
def test_images_of_any_size_give_the_same_number_of_features(name, size):
    model = create_backbone(name=name)
    assert model.head_hidden_size == FEATURES[name]
    assert model(torch.rand(2, 3, size, size)).shape == (2, FEATURES[name])
    assert model(torch.rand(1, 3, size, size + 7)).shape == (1, FEATURES[name])


def test_convnet_is_the_papers():
    # Section IV-B: 5 x 5 convolutions with 16 and 32 filters, each with ReLU and 2 x 2 pooling.
    model = create_backbone(name="convnet")
    first, second = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert (first.weight.shape, second.weight.shape) == ((16, 3, 5, 5), (32, 16, 5, 5))
    images = torch.rand(2, 3, 28, 28)
    x = F.max_pool2d(F.conv2d(images, first.weight, first.bias).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, second.weight, second.bias).relu(), 2)
    torch.testing.assert_close(model(images), x.flatten(1))
    assert sum(p.numel() for p in model.parameters()) == 16 * (75 + 1) + 32 * (400 + 1)


def test_convnet4_has_four_blocks_of_64_filters():
    model = create_backbone(name="convnet4").eval()
    x = images = torch.rand(2, 3, 28, 28)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [c.weight.shape for c in convolutions] == [(64, 3, 3, 3)] + [(64, 64, 3, 3)] * 3
    for convolution, norm in zip(convolutions, norms, strict=True):
        assert convolution.bias is None
        norm.running_mean.uniform_(-0.1, 0.1)
        x = F.max_pool2d(norm(F.conv2d(x, convolution.weight, padding=1)).relu(), 2)
    torch.testing.assert_close(model(images), x.flatten(1))


@pytest.mark.parametrize("name", FEATURES)
def test_mean_and_deviation_are_about_those_of_the_digits(name):
    cfg = create_backbone(name=name).pretrained_cfg
    pixels = digits.load().train.images / 255
    for mean, std in zip(cfg["mean"], cfg["std"], strict=True):
        assert abs(pixels.mean() - mean) / std < 0.1 and pixels.std() / std == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", FEATURES)
def test_every_weight_gets_a_gradient(name):
    model = create_backbone(name=name)
    model(torch.rand(4, 3, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_gray_images_can_be_asked_for():
    assert timm.create_model("convnet", in_chans=1)(torch.rand(2, 1, 28, 28)).shape == (2, 512)
