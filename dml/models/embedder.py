"""Backbone, pooling and head: images -> embeddings."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.models.heads import Head, make_head
from dml.models.pooling import features_by, pooled_otherwise
from dml.models.weights import load_weights, read_weights

_log = logging.getLogger(__name__)

Spread = Annotated[float, Gt(0)]


class Embedder(nn.Module):
    """A backbone and a head: one linear layer without activation (section IV-C of the NRA paper), or another.

    The input normalisation is part of the network: it takes images as they are stored, and a checkpoint carries
    all that is needed to use it.

    Args:
        backbone: maps normalised images [B, 3, H, W] to features [B, C]; what timm's networks have is taken from it:
            `head_hidden_size` (C) and `pretrained_cfg` (mean and std). `pool` changes it.
        dim: D of the embeddings; None, where there is no head: C.
        freeze_bn: keep every batch norm in evaluation mode and its affine weights fixed.
        freeze: backbone: its weights stay as they are and it is always in evaluation mode; only the head learns.
        normalize: L2-normalise the embeddings; the paper does so in test only, which is the evaluator's doing.
        pool: how the backbone's feature maps or tokens become features, by the name that timm has for it (avg, max,
            avgmax, catavgmax, token, map), or gem (dml/models/pooling.py); None: as the backbone was made.
        head: what makes embeddings of features: linear, norm_linear, mlp or none (dml/models/heads.py).
        features: C, of a backbone that does not say; None: its `head_hidden_size`.
        mean, std: of the red, green and blue of the images in 0 .. 1, to scale them by; None: those of the backbone's
            `pretrained_cfg`.
        checkpoint_path: a checkpoint of an earlier run, whose backbone, head, mean and std this embedder begins with.

    Raises:
        ValueError: dim is not positive or not that of the head, the backbone does not say what was not given or cannot
            pool like that, or the checkpoint holds another embedder; names the config key.
    """

    mean: Tensor
    std: Tensor
    head: Any  # a layer; of embedders that derive from this one also several

    def __init__(
        self,
        *,
        backbone: nn.Module,
        dim: Annotated[int, Gt(0)] | None,
        freeze_bn: bool = False,
        freeze: Literal["backbone"] | None = None,
        normalize: bool = False,
        pool: str | None = None,
        head: Head = "linear",
        features: Annotated[int, Gt(0)] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[Spread, Spread, Spread] | None = None,
        checkpoint_path: str | None = None,
    ) -> None:
        super().__init__()
        if dim is not None and dim <= 0:
            raise ValueError(f"embedder.dim={dim} is not possible: it must be greater than 0")
        if std is not None and min(std) <= 0:
            raise ValueError(f"embedder.std={list(std)} is not possible: each must be greater than 0")
        self.backbone = backbone
        self.pooling = None if pool is None else pooled_otherwise(backbone, pool)
        self.head, self.dim = make_head(head, _features(backbone) if features is None else features, dim)
        self.groups: tuple[int, ...] = (self.dim,)  # the widths of the columns that `forward` gives
        self.freeze_bn = freeze_bn
        self.freeze = freeze
        self.normalize = normalize
        for key, given in (("mean", mean), ("std", std)):
            values = _color(backbone, key) if given is None else given
            self.register_buffer(key, torch.tensor(values).view(1, -1, 1, 1))
        self._finish(checkpoint_path, fixed=[key for key, given in (("mean", mean), ("std", std)) if given])

    def _finish(self, checkpoint_path: str | None, fixed: Sequence[str] = ()) -> None:
        """What is done when all layers are there; an embedder that adds some does it again."""
        if checkpoint_path is not None:
            self._begin_with(checkpoint_path, fixed)
        if self.freeze_bn:
            for norm in self._norms():
                norm.requires_grad_(False)
        if self.freeze is not None:
            self.backbone.requires_grad_(False)
            if self.pooling is not None:  # a part of what gives features, which are computed once
                self.pooling.requires_grad_(False)
        # Channels last: convolutions take half the time on a CPU, and their tensor cores on a GPU.
        self.to(memory_format=torch.channels_last)
        self.train(self.training)  # a fresh module is in training mode, and nobody may switch it before the first step

    def _begin_with(self, path: str, fixed: Sequence[str]) -> None:
        """Load all weights from a checkpoint; those buffers that were given must be the checkpoint's."""
        key = "embedder.checkpoint_path"
        state, place = read_weights(path, key)
        given = {name: getattr(self, name).clone() for name in fixed}
        try:
            said = load_weights(self, state)
        except ValueError as error:
            raise ValueError(
                f"{key}={path} holds another embedder than that of backbone and embedder.dim={self.dim}: {error}. "
                "backbone.checkpoint_path takes the backbone alone"
            ) from error
        for name, value in given.items():
            if not value.is_meta and not torch.equal(value, getattr(self, name)):
                there = [round(number, 6) for number in getattr(self, name).flatten().tolist()]
                raise ValueError(f"embedder.{name} is not that of {key}={path}, which is {there}: leave it out")
        if not self.mean.is_meta:
            _log.info(f"Weights of the embedder from {path}{place and f' ({place})'}{said and f'; {said}'}")

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> "Embedder":
        """Switch to training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.freeze_bn:
            for norm in self._norms():
                norm.eval()
        if self.freeze is not None:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], uint8 in 0 .. 255 or float in [0, 1] -> columns [B, sum(groups)]; here embeddings.

        Or features [B, C], as `features(scaled(images))` gave them before.
        """
        return self.embedded(images) if images.ndim == 2 else self.columns(self.scaled(images))

    def scaled(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], uint8 in 0 .. 255 or float in [0, 1] -> as the backbone takes them, in channels last."""
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def columns(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] as the backbone takes them, scaled and in channels last -> embeddings [B, D]."""
        return self.embedded(self.features(x))

    def embedded(self, features: Tensor) -> Tensor:
        """Features [B, C] -> embeddings [B, D]."""
        with full_precision(features):
            embeddings = self.head(features.to(self.mean.dtype))
        return F.normalize(embeddings, dim=1) if self.normalize else embeddings

    def features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] as the backbone takes them -> its features [B, C], pooled."""
        return self.backbone(x) if self.pooling is None else features_by(self.pooling, self.backbone, x)

    def join(self, columns: Tensor) -> Tensor:
        """What `forward` gives -> embeddings [B, D] to search with."""
        return columns


def full_precision(features: Tensor) -> AbstractContextManager[None]:
    """A head leaves autocast: embeddings of bfloat16's 8 bits would tie, in mining and in ranking."""
    return nullcontext() if features.is_meta else torch.autocast(features.device.type, enabled=False)


def _features(backbone: nn.Module) -> int:
    """The C that a backbone says."""
    found = getattr(backbone, "head_hidden_size", None)
    if not isinstance(found, int):
        raise ValueError(
            f"embedder.features=C is needed: the backbone, a {type(backbone).__name__}, has no whole number "
            "head_hidden_size that says how many features it gives"
        )
    return found


def _color(backbone: nn.Module, key: str) -> Any:
    """The mean or std that a backbone says."""
    # timm may hand the configuration over as a dict or as its own class.
    source: Any = getattr(backbone, "pretrained_cfg", None)
    cfg = source.to_dict() if hasattr(source, "to_dict") else source
    if cfg is None or key not in cfg:
        raise ValueError(
            f"embedder.{key}=[R,G,B] is needed: the backbone, a {type(backbone).__name__}, has no pretrained_cfg with "
            f"a {key} to scale images by (ImageNet's: mean=[0.485,0.456,0.406], std=[0.229,0.224,0.225])"
        )
    return cfg[key]
