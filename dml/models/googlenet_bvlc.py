"""GoogLeNet as it was published (Szegedy et al. 2015): without batch norm, in the weights of the Caffe model zoo."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from dml.models.chained import Chained
from dml.models.inception import ConvNorm, Inception, from_caffe, xavier

default_cfgs = generate_default_cfgs(
    {
        # ImageNet top-1 68.7. It was trained on blue, green, red in 0 .. 255 without these means; its first layer is
        # turned where the file is read.
        "googlenet_bvlc": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (123 / 255, 117 / 255, 104 / 255),
            "std": (1 / 255,) * 3,
            "first_conv": "conv1.conv",
            "classifier": "fc",
            "notes": (
                "they are bvlc_googlenet.caffemodel of BVLC's Caffe model zoo (dl.caffe.berkeleyvision.org), which is "
                "read as it is",
            ),
        },
    }
)

# Channels of the branches 1x1, 3x3 (reduced, then), 5x5 (reduced, then) and pool.
_BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNetBVLC(Chained):
    """Caffe's GoogLeNet. Pieces have the names of `googlenet`, so taps and cuts are the same.

    Args:
        num_classes, in_chans, global_pool, drop_rate: as of timm's networks.
        aux_heads: keep what the two auxiliary classifiers have before their last layer, `aux1` (of inception4a) and
            `aux2` (of inception4d). The network makes no use of them: embedder=cascade (HDC) begins with them.
    """

    chain = (
        *("conv1", "maxpool1", "norm1", "conv2", "conv3", "norm2", "maxpool2", "inception3a", "inception3b"),
        *("maxpool3", *(f"inception4{block}" for block in "abcde"), "maxpool4", "inception5a", "inception5b"),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.4,
        aux_heads: bool = False,
    ) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = ConvNorm(in_chans, 64, 7, 2), ConvNorm(64, 64), ConvNorm(64, 192, 3)
        self.norm1, self.norm2 = (nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) for _ in range(2))
        for i in range(1, 5):
            self.add_module(f"maxpool{i}", nn.MaxPool2d(3, 2, ceil_mode=True))
        channels, width = 192, {}
        for name, sizes in _BLOCKS.items():
            block, channels = _block(channels, *sizes)
            width[name] = channels
            self.add_module(f"inception{name}", block)
        self.feature_info = [
            {"num_chs": 64, "reduction": 2, "module": "conv1"},
            {"num_chs": 192, "reduction": 4, "module": "conv3"},
            {"num_chs": width["3b"], "reduction": 8, "module": "inception3b"},
            {"num_chs": width["4e"], "reduction": 16, "module": "inception4e"},
            {"num_chs": width["5b"], "reduction": 32, "module": "inception5b"},
        ]
        if aux_heads:
            self.aux1, self.aux2 = Auxiliary(width["4a"]), Auxiliary(width["4d"])
        xavier(self, bias=0.2)
        self._set_head(channels, num_classes, global_pool)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = self._classifier(num_classes)


class Auxiliary(nn.Module):
    """What an auxiliary classifier has before its last layer; it does not learn here, but where it is copied to."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 128, 1)
        self.fc = nn.Linear(128 * 4 * 4, 1024)
        self.requires_grad_(False)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps [B, C, 14, 14] -> [B, 1024]."""
        return self.fc(self.conv(F.avg_pool2d(maps, 5, 3)).relu().flatten(1)).relu()


def _block(
    channels: int, one: int, reduced: int, three: int, reduced_five: int, five: int, pooled: int
) -> tuple[Inception, int]:
    """A block, and its channels."""
    branches: list[tuple[str, nn.Module]] = [
        ("1x1", ConvNorm(channels, one)),
        ("3x3", nn.Sequential(ConvNorm(channels, reduced), ConvNorm(reduced, three, 3))),
        ("5x5", nn.Sequential(ConvNorm(channels, reduced_five), ConvNorm(reduced_five, five, 5))),
        ("pool", nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(channels, pooled))),
    ]
    return Inception(branches), one + three + five + pooled


_AUXILIARY = {
    f"aux{i}.{ours}": f"loss{i}_{theirs}" for i in (1, 2) for ours, theirs in (("conv", "conv"), ("fc", "fc"))
}


def _ours(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    taken = from_caffe(state, model, {"fc": "loss3_classifier", **_AUXILIARY})
    return {name: value for name, value in taken.items() if not name.startswith(("loss1_", "loss2_"))}


@register_model
def googlenet_bvlc(pretrained: bool = False, **kwargs: Any) -> GoogLeNetBVLC:
    """GoogLeNet without batch norm: 1024 pooled features at `num_classes=0`."""
    options = {"pretrained_filter_fn": _ours, "feature_cfg": {"feature_cls": "hook"}, **kwargs}
    return build_model_with_cfg(GoogLeNetBVLC, "googlenet_bvlc", pretrained, **options)
