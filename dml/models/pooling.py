"""Pooling and classifier behind feature maps, as timm's interface asks of a network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pool(maps: Tensor, kind: str) -> Tensor:
    """Feature maps [B, C, h, w] -> [B, C] by avg, max or their mean avgmax; [B, C h w] by flat; as they are by ""."""
    if kind in ("", "flat"):
        return maps.flatten(1) if kind else maps
    parts = []
    if kind != "max":
        parts.append(F.adaptive_avg_pool2d(maps, 1))
    if kind != "avg":
        parts.append(F.adaptive_max_pool2d(maps, 1))
    return torch.flatten(parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2, 1)


class Pooled(nn.Module):
    """What our networks for timm have in common: `forward_features` is theirs, pooling and classifier are here.

    Attributes:
        num_features: C of the feature maps.
        head_hidden_size: of what is left of an image after pooling.
        num_classes: of the classifier `fc`; 0: there is none.
        global_pool: one of `poolings`.
        flat_size: h w of the feature maps, where they may be flattened; None: their size depends on the image's.
    """

    poolings: tuple[str, ...] = ("avg", "max", "avgmax", "")
    flat_size: int | None = None
    fc: nn.Module
    dropout: nn.Module

    def _set_head(self, num_features: int, num_classes: int, global_pool: str) -> None:
        self.num_features = num_features
        self._set_pooling(global_pool)
        self.num_classes = num_classes

    def _set_pooling(self, global_pool: str) -> None:
        if global_pool not in self.poolings:
            kinds = ", ".join(kind or "''" for kind in self.poolings)
            raise ValueError(f"global_pool={global_pool} is not possible: it must be one of {kinds}")
        self.global_pool = global_pool
        self.head_hidden_size = self.num_features * (self.flat_size or 1 if global_pool == "flat" else 1)

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity when `num_classes` is 0."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes leaves pooled features.

        Raises:
            ValueError: global_pool is none that the network has.
        """
        if global_pool is not None:
            self._set_pooling(global_pool)
        self.num_classes = num_classes
        self.fc = self._classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> feature maps [B, C, h, w]."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps [B, C, h, w] -> pooled features [B, head_hidden_size], or logits."""
        x = pool(x, self.global_pool)
        return x if pre_logits or not self.num_classes else self.fc(self.dropout(x))

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits [B, num_classes], or pooled features [B, head_hidden_size] when `num_classes` is 0."""
        return self.forward_head(self.forward_features(x))
