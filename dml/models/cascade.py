"""An embedding of several depths of a network, for HDC (Yuan, Yang and Zhang 2017, arXiv:1611.05720)."""

import functools
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from dml.models.chained import trial_image
from dml.models.embedder import Embedder, Spread, full_precision
from dml.models.groups import Sizes, Weights, check_groups, joined

Drop = Annotated[float, Interval(ge=0, lt=1)]


class CascadeEmbedder(Embedder):
    """Levels of a network: each tap has a head of its own, as GoogLeNet's auxiliary classifiers, the last its features.

    A tap's feature maps are averaged to tap_grid x tap_grid places, go through a 1 x 1 convolution and a layer of
    `hidden` (`neck`; of googlenet_bvlc with aux_heads they begin with the weights of its auxiliary classifiers), each
    with a ReLU, and through dropout and a linear layer (`head`) to the level's columns. The
    last level is dropout and a linear layer of the network's features.

    Args:
        backbone, dim, freeze_bn, features, mean, std, checkpoint_path: as of Embedder.
        normalize: bring each level's columns to length 1 in training.
        sizes: widths of the levels, one more than there are taps; they add up to dim.
        taps: names of the backbone's modules that give feature maps, from the shallow to the deep.
        weights: of the levels, that their unit vectors are multiplied by for search; None: all 1 (SOP; the authors have
            1, 1, 2 on CUB and 1, 2, 3 on Cars).
        tap_pool: kernel and stride of the average pooling of a tap; None: to tap_grid places whatever their size, which
            is not the same operation.
        tap_grid: how many places a side are left; [5, 3] leaves 4 of GoogLeNet's 14.
        channels: of the 1 x 1 convolution.
        hidden: width of the layer behind it.
        dropout: of each level, before its linear layer.

    Raises:
        ValueError: sizes, taps, weights and dropout do not go together, or a tap gives no feature maps; names the
            config key.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        dim: Annotated[int, Gt(0)],
        freeze_bn: bool = False,
        normalize: bool = False,
        features: Annotated[int, Gt(0)] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[Spread, Spread, Spread] | None = None,
        checkpoint_path: str | None = None,
        sizes: Sizes = (128, 128, 128),  # type: ignore[assignment]
        taps: list[str] = ("inception4a", "inception4d"),  # type: ignore[assignment]
        weights: Weights | None = None,
        tap_pool: tuple[Annotated[int, Gt(0)], Annotated[int, Gt(0)]] | None = (5, 3),
        tap_grid: Annotated[int, Gt(0)] = 4,
        channels: Annotated[int, Gt(0)] = 128,
        hidden: Annotated[int, Gt(0)] = 1024,
        dropout: list[Drop] = (0.7, 0.7, 0.4),  # type: ignore[assignment]
    ) -> None:
        check_groups(sizes, dim, weights)
        for key, given, wanted in (("taps", taps, len(sizes) - 1), ("dropout", dropout, len(sizes))):
            if len(given) != wanted:
                raise ValueError(
                    f"embedder.{key}={list(given)} is not possible: {len(sizes)} levels (embedder.sizes) need {wanted}"
                )
        super().__init__(
            backbone=backbone,
            dim=dim,
            freeze_bn=freeze_bn,
            normalize=normalize,
            features=features,
            mean=mean,
            std=std,
        )
        last: Any = self.head.in_features
        self.sizes = self.groups = tuple(sizes)
        self.weights = (1.0,) * len(sizes) if weights is None else tuple(weights)
        self.taps, self.dropout = tuple(taps), tuple(dropout)
        self._seen: dict[str, Tensor] = {}
        for name in taps:
            _module(backbone, name).register_forward_hook(functools.partial(self._keep, name))
        self.neck = nn.ModuleList(
            _Neck(width, channels, hidden, tap_pool, tap_grid) for width in _widths(backbone, taps, self._seen)
        )
        for neck, name in zip(self.neck, ("aux1", "aux2"), strict=False):
            if isinstance(getattr(backbone, name, None), nn.Module):
                _begin_with(neck, backbone, name)
        self.head = nn.ModuleList(nn.Linear(hidden, size) for size in sizes[:-1])
        self.head.append(nn.Linear(last, sizes[-1]))
        for layer in self.head:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self._finish(checkpoint_path, fixed=[key for key, given in (("mean", mean), ("std", std)) if given])

    def _keep(self, name: str, module: nn.Module, given: Any, maps: Tensor) -> None:
        self._seen[name] = maps

    def columns(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] as the backbone takes them, scaled and in channels last -> [B, sum(groups)].

        Raises:
            ValueError: a tap's maps are not of the size that its pooling takes to tap_grid places.
        """
        features = self.backbone(x)
        levels = [neck(self._seen.pop(name)) for neck, name in zip(self.neck, self.taps, strict=True)]
        parts = []
        with full_precision(features):
            heads: Any = self.head
            for head, share, level in zip(heads, self.dropout, [*levels, features], strict=True):
                parts.append(head(F.dropout(level.to(head.weight.dtype), share, self.training)))
            columns = torch.cat(parts, dim=1)
            return joined(columns, self.sizes, (1.0,) * len(self.sizes)) if self.normalize else columns

    def join(self, columns: Tensor) -> Tensor:
        """Columns [B, sum(groups)] -> embeddings [B, dim] to search with: each level's unit vector times its weight."""
        return joined(columns, self.sizes, self.weights)


def _begin_with(neck: nn.Module, backbone: nn.Module, name: str) -> None:
    """Move the weights of an auxiliary classifier of the backbone, which has no use for them, into a neck."""
    try:
        neck.load_state_dict(backbone.get_submodule(name).state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"backbone.aux_heads=true is not possible: {name} does not fit embedder.taps, channels, hidden and "
            f"tap_grid ({' '.join(str(error).split())[:200]})"
        ) from error
    delattr(backbone, name)


class _Neck(nn.Module):
    """Feature maps [B, C, h, w] -> [B, hidden]."""

    def __init__(self, width: int, channels: int, hidden: int, pool: tuple[int, int] | None, grid: int) -> None:
        super().__init__()
        self.pool, self.grid = None if pool is None else tuple(pool), grid
        self.conv = nn.Conv2d(width, channels, 1)
        self.fc = nn.Linear(channels * grid**2, hidden)

    def forward(self, maps: Tensor) -> Tensor:
        if self.pool is None:
            x = F.adaptive_avg_pool2d(maps, self.grid)
        else:
            kernel, stride = self.pool
            places = [(side - kernel) // stride + 1 for side in maps.shape[2:]]
            if places != [self.grid] * 2:
                size = "x".join(map(str, maps.shape[2:]))
                raise ValueError(
                    f"embedder.tap_pool={[kernel, stride]} leaves {'x'.join(map(str, places))} places of maps of "
                    f"{size}, and embedder.tap_grid={self.grid}: embedder.tap_pool=null takes maps of any size"
                )
            x = F.avg_pool2d(maps, kernel, stride)
        return self.fc(self.conv(x).relu().flatten(1)).relu()


def _module(backbone: nn.Module, name: str) -> nn.Module:
    try:
        return backbone.get_submodule(name)
    except AttributeError as error:
        known = ", ".join(child for child, _ in backbone.named_children())
        raise ValueError(
            f"embedder.taps has {name}, which is no module of a {type(backbone).__name__}: it has {known}, and what is "
            "inside of these, as layer2.0"
        ) from error


@torch.no_grad()
def _widths(backbone: nn.Module, taps: Sequence[str], seen: dict[str, Tensor]) -> list[int]:
    """How many channels the maps of each tap have; found by an image, as no network says it of all its modules."""
    training = backbone.training
    backbone.eval()(trial_image(backbone))
    backbone.train(training)
    for name in taps:
        maps = seen.get(name)
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            shape = list(maps.shape) if isinstance(maps, Tensor) else "nothing"
            raise ValueError(f"embedder.taps has {name}, which gives {shape} and no feature maps [B, C, h, w]")
    return [seen.pop(name).shape[1] for name in taps]
