"""Networks that are a chain of pieces, with all that timm's users ask of a network, and the pieces of timm's own."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml.models.pooling import Pooled


class Chained(Pooled):
    """A network whose `forward_features` goes through the modules of `pieces()`, one after the other.

    Attributes:
        chain: names of the pieces.
        feature_info: of the pieces whose maps may be taken: their channels, by what they reduce an image, their names.
        grad_checkpointing: whether a backward pass computes the maps inside of each piece again, which saves memory.
    """

    chain: tuple[str, ...]
    feature_info: list[dict[str, Any]]
    grad_checkpointing = False

    def pieces(self) -> list[tuple[str, nn.Module]]:
        """The modules that `forward_features` goes through, one after the other, with their names."""
        return [(name, self.get_submodule(name)) for name in self.chain]

    def _through(self, piece: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(piece, x, use_reentrant=False)
        return piece(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> feature maps [B, num_features, h, w]."""
        for _, piece in self.pieces():
            x = self._through(piece, x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Feature maps on the way.

        Args:
            x: images [B, 3, H, W].
            indices: which of `feature_info`; a number: the last so many; None: all.
            norm: there is no norm to apply.
            stop_early: end at the last of them.
            output_fmt: NCHW, the only one.
            intermediates_only: give the list alone.

        Returns:
            The last feature maps and a list of those asked for, or the list.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        taken, last = feature_take_indices(len(self.feature_info), indices)
        names = [info["module"] for info in self.feature_info]
        maps = []
        for name, piece in self.pieces():
            x = self._through(piece, x)
            if name in names and names.index(name) in taken:
                maps.append(x)
            if stop_early and name == names[last]:
                break
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take away all that `forward_intermediates` with these indices does not need; returns them."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        end = self.chain.index(self.feature_info[last]["module"]) + 1
        for name in self.chain[end:]:
            parent, _, own = name.rpartition(".")
            self.get_submodule(parent).register_module(own, nn.Identity())
        if end < len(self.chain):
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or end < len(self.chain):
            self.reset_classifier(0, "")
        return taken

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer each weight is of, for rates that fall from layer to layer: a piece is a layer."""
        first, *rest = (name.replace(".", r"\.") for name in self.chain if list(self.get_submodule(name).parameters()))
        return {"stem": rf"^{first}\.", "blocks": [(rf"^{name}\.", (i,)) for i, name in enumerate(rest)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training, or no longer, by computing maps twice."""
        self.grad_checkpointing = enable


@torch.no_grad()
def pieces_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that a network's `forward_features` goes through, one after the other, with their names.

    Of a network that has `pieces()` its own; of another those of its children that, tried on an image, give what
    `forward_features` gives, with the stages of `blocks` or `stages` one by one. Of timm's networks these are ResNets,
    EfficientNets, MobileNets, ConvNeXts, RegNets and more, but no ViT. Empty: the network is no such chain.
    """
    own: Any = getattr(network, "pieces", None)
    if own is not None:
        return own()
    found: list[tuple[str, nn.Module]] = []
    if not hasattr(network, "forward_features"):
        return found
    modes = {module: module.training for module in network.modules()}
    network.eval()
    black = trial_image(network)
    x = torch.randn(black.shape, generator=torch.Generator().manual_seed(0)).to(black)
    goal = network.forward_features(x)  # type: ignore[operator]
    whole = False
    for name, piece in _children(network):
        try:
            x = piece(x)
        except Exception:  # it takes something else, and says so in its own way: this is no chain
            break
        found.append((name, piece))
        whole = isinstance(x, Tensor) and torch.equal(x, goal)
        if whole:
            break
    for module, training in modes.items():
        module.training = training
    return found if whole else []


def _children(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in network.named_children():
        if name in ("blocks", "stages") and isinstance(child, nn.Sequential):
            yield from ((f"{name}.{inner}", stage) for inner, stage in child.named_children())
        else:
            yield name, child


def trial_image(backbone: nn.Module) -> Tensor:
    """A black image [1, 3, H, W] of the size that a backbone was trained with, to find the shapes of its maps by."""
    cfg: Any = getattr(backbone, "pretrained_cfg", None) or {}
    size = (cfg if isinstance(cfg, dict) else cfg.to_dict()).get("input_size") or (3, 224, 224)
    weight = next(backbone.parameters())
    return torch.zeros(1, *size, dtype=weight.dtype, device=weight.device)
