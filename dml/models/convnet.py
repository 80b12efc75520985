"""Small networks trained from scratch, registered with timm like any other."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

# Mean and deviation are about those of the digits: light strokes on a dark ground.
_SMALL = {"url": "", "num_classes": 0, "mean": (0.3,) * 3, "std": (0.35,) * 3, "license": "mit"}

default_cfgs = generate_default_cfgs(
    {
        "convnet": {**_SMALL, "input_size": (3, 28, 28), "first_conv": "features.0", "classifier": None},
        "convnet4": {**_SMALL, "input_size": (3, 28, 28), "first_conv": "features.0.0", "classifier": None},
    }
)


class ConvNet(nn.Module):
    """Convolutions over images [B, 3, H, W], flattened to features [B, num_features]."""

    def __init__(self, features: nn.Sequential, num_features: int) -> None:
        super().__init__()
        self.features = features
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = 0

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> feature maps."""
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, num_features]."""
        return self.forward_features(x).flatten(1)


def _two_convolutions(in_chans: int = 3, num_classes: int = 0, global_pool: str = "") -> ConvNet:
    features = nn.Sequential(
        nn.Conv2d(in_chans, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        # An image of 28 x 28 arrives here as 8 x 8: an ordinary 2 x 2 pooling; others are brought to size.
        nn.AdaptiveMaxPool2d(4),
    )
    return ConvNet(features, 32 * 4 * 4)


def _four_blocks(in_chans: int = 3, num_classes: int = 0, global_pool: str = "") -> ConvNet:
    blocks = [
        nn.Sequential(
            nn.Conv2d(in_chans if i == 0 else 64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for i in range(4)
    ]
    return ConvNet(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1)), 64)


@register_model
def convnet(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """The two convolutions of the NRA paper's MNIST network (section IV-B); its linear layer is the embedder's."""
    return build_model_with_cfg(_two_convolutions, "convnet", pretrained, **kwargs)


@register_model
def convnet4(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Four blocks of 64 filters, the usual network for Omniglot (Vinyals et al. 2016, Snell et al. 2017)."""
    return build_model_with_cfg(_four_blocks, "convnet4", pretrained, **kwargs)
