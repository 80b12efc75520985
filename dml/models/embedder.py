"""Backbone and linear head: images -> embeddings."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F


class Embedder(nn.Module):
    """A backbone and one linear layer without activation (section IV-C of the NRA paper).

    The input normalisation is part of the network: it takes images as they are stored, and a checkpoint carries
    all that is needed to use it.

    Args:
        backbone: maps normalised images [B, 3, H, W] to features [B, C]; has timm's `pretrained_cfg` and
            `head_hidden_size`.
        dim: D of the embeddings.
        freeze_bn: keep every batch norm of the backbone in evaluation mode and its affine weights fixed.
        normalize: L2-normalise the embeddings; the paper does so in test only, which is the evaluator's doing.

    Raises:
        ValueError: dim is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module,
        dim: Annotated[int, Gt(0)],
        freeze_bn: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if dim <= 0:
            raise ValueError(f"embedder.dim={dim} is not possible: it must be greater than 0")
        self.backbone = backbone
        self.head = nn.Linear(backbone.head_hidden_size, dim)  # type: ignore[arg-type]
        self.dim = dim
        self.freeze_bn = freeze_bn
        self.normalize = normalize
        # timm may hand the configuration over as a dict or as its own class.
        source = backbone.pretrained_cfg
        cfg = source if isinstance(source, dict) else source.to_dict()  # type: ignore[operator, union-attr]
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, -1, 1, 1))
        if freeze_bn:
            for norm in self._norms():
                norm.requires_grad_(False)
        # Channels last: convolutions take half the time on a CPU, and their tensor cores on a GPU.
        self.to(memory_format=torch.channels_last)
        self.train(self.training)  # a fresh module is in training mode, and nobody may switch it before the first step

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> "Embedder":
        """Switch to training mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_bn:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], uint8 in 0 .. 255 or float in [0, 1] -> embeddings [B, D]."""
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.backbone(x)
        # The head leaves autocast: embeddings of bfloat16's 8 bits would tie, in mining and in ranking.
        with torch.autocast(features.device.type, enabled=False):
            embeddings = self.head(features.to(self.head.weight.dtype))
        return F.normalize(embeddings, dim=1) if self.normalize else embeddings
