"""BN-Inception (Ioffe and Szegedy 2015), the network of most papers on metric learning from 2017 to 2020."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dml.models.chained import Chained
from dml.models.inception import ConvNorm, Inception, from_caffe

default_cfgs = generate_default_cfgs(
    {
        # ImageNet top-1 about 73.5. It was trained on blue, green, red in 0 .. 255 without these means; its first layer
        # is turned where the file is read, so here they are those of red, green and blue.
        "bninception": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (128 / 255, 117 / 255, 104 / 255),
            "std": (1 / 255,) * 3,
            "first_conv": "conv1.conv",
            "classifier": "fc",
            "notes": (
                "they are bn_inception-52deb4733.pth of Cadene's pretrained-models.pytorch "
                "(data.lip6.fr/cadene/pretrainedmodels, which is often down; dichotomies/proxy-nca has them as "
                "net/bn_inception_weights_pt04.pt)",
            ),
        },
    }
)

# Channels of the branches 1x1, 3x3 (reduced, then), double 3x3 (reduced, then) and pool; 0: the branch is not there, or
# of pool: the maps as they are.
_BLOCKS: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}


class BNInception(Chained):
    """Ten blocks of branches; convolutions have a bias, batch norm and ReLU. Images of a multiple of 32 pixels."""

    chain = ("conv1", "maxpool1", "conv2", "conv3", "maxpool2", *(f"inception{name}" for name in _BLOCKS))

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_chans, 64, 7, 2, norm=True)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = ConvNorm(64, 64, norm=True)
        self.conv3 = ConvNorm(64, 192, 3, norm=True)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels, width = 192, {}
        for name, sizes in _BLOCKS.items():
            block, channels = _block(name, channels, *sizes)
            width[name] = channels
            self.add_module(f"inception{name}", block)
        self.feature_info = [
            {"num_chs": 64, "reduction": 2, "module": "conv1"},
            {"num_chs": 192, "reduction": 4, "module": "conv3"},
            {"num_chs": width["3b"], "reduction": 8, "module": "inception3b"},
            {"num_chs": width["4d"], "reduction": 16, "module": "inception4d"},
            {"num_chs": width["5b"], "reduction": 32, "module": "inception5b"},
        ]
        self._set_head(channels, num_classes, global_pool)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = self._classifier(num_classes)


def _block(
    name: str, channels: int, one: int, reduced: int, three: int, reduced_twice: int, twice: int, pooled: int
) -> tuple[Inception, int]:
    """A block, and its channels. Without a branch of 1 x 1 it halves the maps' sides."""
    stride = 1 if one else 2
    branches: list[tuple[str, nn.Module]] = [("1x1", ConvNorm(channels, one, norm=True))] if one else []
    branches += [
        ("3x3", nn.Sequential(ConvNorm(channels, reduced, norm=True), ConvNorm(reduced, three, 3, stride, norm=True))),
        (
            "double_3x3",
            nn.Sequential(
                ConvNorm(channels, reduced_twice, norm=True),
                ConvNorm(reduced_twice, twice, 3, norm=True),
                ConvNorm(twice, twice, 3, stride, norm=True),
            ),
        ),
    ]
    pool: nn.Module = nn.AvgPool2d(3, 1, 1)
    if not pooled:
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    elif name == "5b":
        pool = nn.MaxPool2d(3, 1, 1)
    branches.append(("pool", nn.Sequential(pool, ConvNorm(channels, pooled, norm=True)) if pooled else pool))
    return Inception(branches), one + three + twice + (pooled or channels)


def _ours(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return from_caffe(state, model, {"fc": "last_linear"})


@register_model
def bninception(pretrained: bool = False, **kwargs: Any) -> BNInception:
    """BN-Inception: 1024 pooled features at `num_classes=0`."""
    options = {"pretrained_filter_fn": _ours, "feature_cfg": {"feature_cls": "hook"}, **kwargs}
    return build_model_with_cfg(BNInception, "bninception", pretrained, **options)
