"""Small networks trained from scratch, registered with timm like any other."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dml.models.chained import Chained

# Mean and deviation are about those of the digits: light strokes on a dark ground.
_SMALL = {
    "url": "",
    "input_size": (3, 28, 28),
    "num_classes": 0,
    "classifier": "fc",
    "mean": (0.3,) * 3,
    "std": (0.35,) * 3,
    "license": "mit",
}

default_cfgs = generate_default_cfgs(
    {
        "convnet": {
            **_SMALL,
            "input_size": (3, 28, 28),
            "pool_size": (4, 4),
            "first_conv": "features.0",
            "classifier": "fc",
        },
        "convnet4": {
            **_SMALL,
            "input_size": (3, 28, 28),
            "pool_size": (1, 1),
            "first_conv": "features.0.0",
            "classifier": "fc",
        },
    }
)


class ConvNet(Chained):
    """Convolutions over images [B, 3, H, W], pooled to features [B, head_hidden_size].

    Args:
        features: the layers.
        stages: names and channels of those whose maps may be taken, the last of all among them.
        num_classes, global_pool, drop_rate: as of timm's networks.
    """

    def __init__(
        self,
        features: nn.Sequential,
        stages: list[tuple[str, int]],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.features = features
        self._set_head(stages[-1][1], num_classes, global_pool)
        self.chain = tuple(f"features.{i}" for i in range(len(features)))
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": name} for i, (name, width) in enumerate(stages)
        ]
        self.dropout = nn.Dropout(drop_rate)
        self.fc = self._classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> feature maps [B, num_features, h, w]."""
        return super().forward_features(x) if self.grad_checkpointing else self.features(x)


class _TwoConvolutions(ConvNet):
    poolings = ("flat", *ConvNet.poolings)
    flat_size = 4 * 4

    def __init__(
        self, in_chans: int = 3, num_classes: int = 0, global_pool: str = "flat", drop_rate: float = 0.0
    ) -> None:
        features = nn.Sequential(
            nn.Conv2d(in_chans, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            # An image of 28 x 28 arrives here as 8 x 8: an ordinary 2 x 2 pooling; others are brought to size.
            nn.AdaptiveMaxPool2d(4),
        )
        super().__init__(features, [("features.2", 16), ("features.5", 32)], num_classes, global_pool, drop_rate)


class _FourBlocks(ConvNet):
    def __init__(
        self, in_chans: int = 3, num_classes: int = 0, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        blocks = [
            nn.Sequential(
                nn.Conv2d(in_chans if i == 0 else 64, 64, 3, padding=1, bias=False),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for i in range(4)
        ]
        stages = [(f"features.{i}", 64) for i in range(4)]
        super().__init__(nn.Sequential(*blocks), stages, num_classes, global_pool, drop_rate)


def _feature_maps(stages: int) -> dict[str, Any]:
    """For timm's features_only: maps are caught where they are made."""
    return {"feature_cls": "hook", "out_indices": tuple(range(stages))}


@register_model
def convnet(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """The two convolutions of the NRA paper's MNIST network (section IV-B); its linear layer is the embedder's."""
    return build_model_with_cfg(_TwoConvolutions, "convnet", pretrained, feature_cfg=_feature_maps(2), **kwargs)


@register_model
def convnet4(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Four blocks of 64 filters, the usual network for Omniglot (Vinyals et al. 2016, Snell et al. 2017)."""
    return build_model_with_cfg(_FourBlocks, "convnet4", pretrained, feature_cfg=_feature_maps(4), **kwargs)
