"""Blocks of Inception networks, branches over the same maps, and the names that their published weights have."""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# The layers of a branch, here -> in Caffe's files.
_LAYERS = {
    "1x1": "1x1",
    **{"3x3.0": "3x3_reduce", "3x3.1": "3x3", "5x5.0": "5x5_reduce", "5x5.1": "5x5", "pool.1": "pool_proj"},
    **{"double_3x3.0": "double_3x3_reduce", "double_3x3.1": "double_3x3_1", "double_3x3.2": "double_3x3_2"},
}
_STEM = {"conv1": "conv1_7x7_s2", "conv2": "conv2_3x3_reduce", "conv3": "conv2_3x3"}


class ConvNorm(nn.Module):
    """A convolution with bias, padded so that stride 1 keeps the size, then batch norm if there is one, then ReLU."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, *, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(out) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, out, h', w']."""
        return self.bn(self.conv(x)).relu()


class Inception(nn.Module):
    """Branches, by name, whose maps are concatenated in the order in which they are given."""

    def __init__(self, branches: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        for name, branch in branches:
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, sum of the branches' channels, h', w']."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def xavier(network: nn.Module, bias: float) -> None:
    """Caffe's initialisation: weights uniform in +-sqrt(3 / inputs), biases of one value."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.constant_(module.bias, bias)  # type: ignore[arg-type]


def from_caffe(state: Mapping[str, Tensor], network: nn.Module, beside: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights that come from Caffe, under our names, for images of red, green and blue.

    Caffe's images are blue, green and red, so the inputs of the first layer are turned around. A file of ours is given
    back as it is.

    Args:
        state: names such as inception_3a/3x3_reduce.weight or inception_3a_3x3_reduce_bn.running_mean; vectors may be
            [1, C] or [1, 1, 1, C].
        network: with conv1, conv2, conv3 and Inception blocks.
        beside: other layers, here -> there.
    """
    given = {name.replace("/", "_"): value for name, value in state.items()}
    if f"{_STEM['conv1']}.weight" not in given:
        return dict(state)
    own = network.state_dict()
    names = {_published(name, {**_STEM, **beside}): name for name in own}
    # A classifier goes by our name also where the network has none, so that it is known for one.
    names |= {f"{beside['fc']}.{leaf}": f"fc.{leaf}" for leaf in ("weight", "bias")}
    taken = {names.get(name, name): value for name, value in given.items()}
    for name, value in taken.items():
        if name in own and _sides(value) == _sides(own[name]):
            taken[name] = value.reshape(own[name].shape)
    first = "conv1.conv.weight"
    if first in taken and taken[first].ndim == 4 and taken[first].shape[1] == 3:
        taken[first] = taken[first][:, [2, 1, 0]].contiguous()
    return taken


def _sides(tensor: Tensor) -> list[int]:
    return [side for side in tensor.shape if side > 1]


def _published(name: str, layers: Mapping[str, str]) -> str:
    """The name that a weight of ours has in a file: inception3a.3x3.0.bn.bias is inception_3a_3x3_reduce_bn.bias."""
    place, _, leaf = name.rpartition(".")
    layer, _, kind = place.rpartition(".")
    if kind not in ("conv", "bn") or place in layers:
        layer, kind = place, ""
    block = re.fullmatch(r"inception(\d\w)\.(.+)", layer)
    theirs = f"inception_{block[1]}_{_LAYERS.get(block[2], block[2])}" if block else layers.get(layer, layer)
    return f"{theirs}{'_bn' if kind == 'bn' else ''}.{leaf}"
