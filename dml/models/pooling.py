"""Pooling behind feature maps and tokens: of any network, and as timm's interface asks of ours."""

from typing import Any

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


class GeM(nn.Module):
    """Generalised mean over places: (mean of x^p)^(1/p) of each channel (Radenovic et al. 2018, equation 3).

    p is learned, one for all channels; 1 is the mean, and the larger it is the closer to the maximum. It is made for
    maps that are not negative: values below 1e-6 count as 1e-6.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0]))

    def forward(self, places: Tensor) -> Tensor:
        """[B, C, places] -> [B, C], in full precision also under autocast."""
        return places.to(self.p.dtype).clamp(min=1e-6).pow(self.p).mean(dim=2).pow(1 / self.p)


def pooled_otherwise(backbone: nn.Module, kind: str) -> GeM | None:
    """Have a network pool in another way than it was made with; its weights stay as they are.

    Args:
        backbone: is changed; without a classifier, as `create_backbone` makes it.
        kind: gem, or a kind that the network's own `reset_classifier` knows: avg, max, avgmax and catavgmax of feature
            maps, and of tokens avg, max and avgmax of all but the class token and its like, token, map.

    Returns:
        For gem the module that pools, by `features_by`; else None.

    Raises:
        ValueError: the network cannot do it; names the config key.
    """
    name = type(backbone).__name__
    reset: Any = getattr(backbone, "reset_classifier", None)
    if reset is None:
        raise ValueError(
            f"embedder.pool={kind} is not possible: the backbone, a {name}, has no reset_classifier(0, kind), as "
            "timm's networks have"
        )
    try:
        if kind == "":
            raise ValueError("without pooling it has no features")
        reset(0, "avg" if kind == "gem" else kind)  # what stands behind its pooling then takes the mean of one place
    except (AssertionError, TypeError, ValueError) as error:
        why = str(error).strip() or "it does not know this kind"
        raise ValueError(f"embedder.pool={kind} is not possible with a {name}: {why.splitlines()[0]}") from error
    return GeM() if kind == "gem" else None


def features_by(pooling: GeM, backbone: Any, x: Tensor) -> Tensor:
    """Features [B, C] of images, pooled by a module; what the network has behind its own pooling follows.

    A network is given the pooled features as maps of one place, or as tokens of which all are the same.
    """
    maps = backbone.forward_features(x)
    if maps.ndim == 3:  # tokens [B, N, C], the first of which are of no place
        first = getattr(backbone, "num_prefix_tokens", 0)
        pooled = pooling(maps[:, first:].transpose(1, 2))
        return backbone.forward_head(pooled[:, None].expand(-1, first + 1, -1))
    last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    pooled = pooling((maps.movedim(3, 1) if last else maps).flatten(2))
    return backbone.forward_head(pooled[:, None, None] if last else pooled[:, :, None, None])
