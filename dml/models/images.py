"""What images a network of timm is made for, and which others it takes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from dml.models.backbones import create_backbone


class Images(NamedTuple):
    """Images as a network was trained on them.

    Attributes:
        size: side of the square, in pixels.
        interpolation: by which they were resized.
        fixed: whether it takes no others as it is.
    """

    size: int
    interpolation: str
    fixed: bool


UNSAID = Images(224, "bilinear", False)  # of a network that does not say


def images_of(name: str) -> Images:
    """The images that timm has for a name."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return UNSAID
    # What timm itself takes where a network says nothing is bicubic.
    interpolation = cfg.interpolation if cfg.interpolation in ("nearest", "bilinear", "lanczos") else "bicubic"
    return Images(max(cfg.input_size[1:]), interpolation, cfg.fixed_input_size)


def takes(name: str, size: int, options: Mapping[str, Any]) -> bool:
    """Whether a network that is made with these options takes all of an image of this size. Computes shapes only."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("meta"):
            network = create_backbone(name=name, **options).eval()
            network(torch.zeros(1, 3, size, size))
    except Exception:  # of any kind: it is what the question is
        return False
    return size % patch_of(network) == 0


def patch_of(network: nn.Module) -> int:
    """Pixels of the side of a patch, of which an image must be made up: what is left over would be cut off; else 1."""
    patches = getattr(network, "patch_embed", None)
    if not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad:
        return 1
    return int(patches.patch_size[0])


def made_for(name: str, size: int, options: Mapping[str, Any]) -> dict[str, int] | None:
    """What else a network has to be made with to take images of a size: nothing, or img_size; None: it cannot.

    With img_size the position embeddings of a weights file are interpolated once, when it is loaded.
    """
    if takes(name, size, options):
        return {}
    wanted = {"img_size": size}
    return wanted if "img_size" not in options and takes(name, size, {**options, **wanted}) else None


def sizes_near(name: str, size: int, options: Mapping[str, Any], *, as_made: bool) -> list[int]:
    """The next smaller and the next larger size that a network takes, or the one that it was trained on.

    Args:
        name: of the network.
        size: that it does not take.
        options: that it is made with.
        as_made: its weights are there already, so it cannot be made for another size.
    """

    def fits(other: int) -> bool:
        return takes(name, other, options) if as_made else made_for(name, other, options) is not None

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        patch = patch_of(create_backbone(name=name, **options))
    step = patch if patch > 1 else 32  # by which most networks reduce an image
    below = next(filter(fits, _multiples(range(size // step, 0, -1), step)), None)
    above = next(filter(fits, _multiples(range(size // step + 1, size // step + 3), step)), None)
    found = [near for near in (below, above) if near is not None]
    own = options.get("img_size", images_of(name).size)
    return found or ([own] if fits(own) else [])


def _multiples(counts: range, step: int) -> Iterator[int]:
    return (count * step for count in counts[:2])
