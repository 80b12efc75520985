"""An embedding of learners that look at different places, for ABE (Kim et al. 2018, arXiv:1804.00382)."""

import copy
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.models.chained import pieces_of, trial_image
from dml.models.embedder import Embedder, Spread, full_precision
from dml.models.groups import joined


class AttentionEmbedder(Embedder):
    """Learners share a network, and each sees the maps in its middle through a mask of its own.

    The network is cut behind `cut`. A copy of what follows, up to `attention_to` (`trunk`), and a 1 x 1 convolution and
    a sigmoid of each learner (`masks`) make a mask of the maps there. What is left of the network and the linear layer
    are the same for all learners: they see the maps times the mask. So a step costs as many passes through the rest of
    the network as there are learners.

    There is no code of the authors; that the trunk is shared and the mask a sigmoid is as in the re-implementation that
    comes with HORDE.

    Args:
        backbone: one that can be cut: it has `pieces()`, as googlenet, googlenet_bvlc and bninception, or is a chain of
            stages, as most of timm's convolutional networks (`dml.models.chained.pieces_of`).
        dim, freeze_bn, features, mean, std, checkpoint_path: as of Embedder.
        normalize: bring each learner's columns to length 1 in training.
        learners: how many; dim is a multiple of it.
        cut: the last piece that learners share without a mask.
        attention_to: the last piece of the trunk; its maps have the places of those at the cut.

    Raises:
        ValueError: the backbone cannot be cut there, or dim not be shared out; names the config key.
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
        learners: Annotated[int, Gt(0)] = 8,
        cut: str = "maxpool3",
        attention_to: str = "inception4e",
    ) -> None:
        if dim % learners:
            raise ValueError(
                f"embedder.dim={dim} is not possible: it must be a multiple of embedder.learners={learners}"
            )
        pieces = pieces_of(backbone)
        if not pieces:
            raise ValueError(
                f"embedder=attention needs a backbone that can be cut, as googlenet or a ResNet: "
                f"{type(backbone).__name__} has no pieces() and is no chain of stages"
            )
        names = [name for name, _ in pieces]
        for key, name in (("cut", cut), ("attention_to", attention_to)):
            if name not in names:
                raise ValueError(f"embedder.{key}={name} is not possible: it must be one of {', '.join(names)}")
        if names.index(attention_to) <= names.index(cut):
            raise ValueError(f"embedder.attention_to={attention_to} does not come after embedder.cut={cut}")
        super().__init__(
            backbone=backbone,
            dim=dim // learners,
            freeze_bn=freeze_bn,
            normalize=normalize,
            features=features,
            mean=mean,
            std=std,
        )
        self.dim, self.learners = dim, learners
        self.groups = (dim // learners,) * learners
        self._names, self._cut = names, names.index(cut) + 1
        self.trunk = nn.Sequential(
            *(copy.deepcopy(piece) for _, piece in pieces[self._cut : names.index(attention_to) + 1])
        )
        channels, told = _channels(backbone, [piece for _, piece in pieces[: self._cut]], self.trunk)
        self.masks = nn.Conv2d(told, channels * learners, 1)
        layers: Any = (self.masks, self.head)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self._finish(checkpoint_path, fixed=[key for key, given in (("mean", mean), ("std", std)) if given])

    def columns(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] as the backbone takes them, scaled and in channels last -> [B, sum(groups)]."""
        network: Any = self.backbone
        pieces = self._pieces()
        for piece in pieces[: self._cut]:
            x = piece(x)
        masks = self.masks(self.trunk(x)).sigmoid().unflatten(1, (self.learners, -1))  # [B, learners, C, h, w]
        seen = (masks * x[:, None]).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for piece in pieces[self._cut :]:
            seen = piece(seen)
        features = network.forward_head(seen, pre_logits=True)
        with full_precision(features):
            columns = self.head(features.to(self.head.weight.dtype)).unflatten(0, (-1, self.learners)).flatten(1)
            return self.join(columns) if self.normalize else columns

    def _pieces(self) -> list[nn.Module]:
        """As they are now: a module may have been put in another's place since, by an export for instance."""
        network: Any = self.backbone
        if hasattr(network, "pieces"):
            return [piece for _, piece in network.pieces()]
        return [network.get_submodule(name) for name in self._names]

    def join(self, columns: Tensor) -> Tensor:
        """Columns [B, sum(groups)] -> embeddings [B, dim] to search with: the learners' unit vectors side by side."""
        return joined(columns, self.groups, (1.0,) * self.learners)


@torch.no_grad()
def _channels(backbone: Any, shared: list[nn.Module], trunk: nn.Module) -> tuple[int, int]:
    """The channels of the maps at the cut and at the end of the trunk, by an image.

    Raises:
        ValueError: their places differ.
    """
    training = backbone.training
    backbone.eval()
    trunk.eval()
    x = trial_image(backbone)
    for piece in shared:
        x = piece(x)
    told = trunk(x)
    backbone.train(training)
    if told.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"embedder.attention_to is not possible: its maps have {list(told.shape[2:])} places and those of "
            f"embedder.cut {list(x.shape[2:])}"
        )
    return x.shape[1], told.shape[1]
