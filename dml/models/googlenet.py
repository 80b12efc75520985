"""GoogLeNet with batch norm: the NRA paper's network, registered with timm."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.models import GoogLeNet as TorchvisionGoogLeNet

from dml.models.chained import Chained

_GOOGLENET_WEIGHTS = "https://download.pytorch.org/models/googlenet-1378be20.pth"

default_cfgs = generate_default_cfgs(
    {
        # TF-Slim's Inception V1 as ported by torchvision: ImageNet top-1 69.8, the paper's initialisation. It was
        # trained on images in [-1, 1], which torchvision's `transform_input` restores; here mean and std say so.
        "googlenet.tf_in1k": {
            "url": _GOOGLENET_WEIGHTS,
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "conv1.conv",
            "classifier": "fc",
            "license": "bsd-3-clause",
        },
    }
)


class GoogLeNet(Chained, TorchvisionGoogLeNet):
    """torchvision's GoogLeNet (Inception V1 with batch norm) behind timm's interface, without auxiliary heads."""

    chain = (
        *("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"),
        *(f"inception4{block}" for block in "abcde"),
        *("maxpool4", "inception5a", "inception5b"),
    )

    fc: nn.Module

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.2
    ) -> None:
        if in_chans != 3:
            raise ValueError(f"googlenet takes in_chans=3, not {in_chans}")
        super().__init__(num_classes=1000, aux_logits=False, init_weights=True, dropout=drop_rate)
        self._set_head(1024, num_classes, global_pool)
        self.feature_info = [
            {"num_chs": 64, "reduction": 2, "module": "conv1"},
            {"num_chs": 192, "reduction": 4, "module": "conv3"},
            {"num_chs": 480, "reduction": 8, "module": "inception3b"},
            {"num_chs": 832, "reduction": 16, "module": "inception4e"},
            {"num_chs": 1024, "reduction": 32, "module": "inception5b"},
        ]
        if num_classes != 1000:  # those 1000 are there already, and random numbers were drawn for them
            self.fc = self._classifier(num_classes)


def _without_auxiliary_heads(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(("aux1.", "aux2."))}


@register_model
def googlenet(pretrained: bool = False, **kwargs: Any) -> GoogLeNet:
    """GoogLeNet (Szegedy et al. 2015): 1024 pooled features at `num_classes=0`."""
    options = {"pretrained_filter_fn": _without_auxiliary_heads, "feature_cfg": {"feature_cls": "hook"}, **kwargs}
    return build_model_with_cfg(GoogLeNet, "googlenet", pretrained, **options)
