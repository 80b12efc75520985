"""An embedding of learners that look at different places, for ABE (Kim et al. 2018, arXiv:1804.00382)."""

import copy
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dml.models.embedder import Embedder, Spread, full_precision
from dml.models.groups import joined, trial_image


class AttentionEmbedder(Embedder):
    """Learners share a network, and each sees the maps in its middle through a mask of its own.

    The network is cut behind `cut`. A copy of what follows, up to `attention_to` (`trunk`), and a 1 x 1 convolution and
    a sigmoid of each learner (`masks`) make a mask of the maps there. What is left of the network and the linear layer
    are the same for all learners: they see the maps times the mask. So a step costs as many passes through the rest of
    the network as there are learners.

    There is no code of the authors; that the trunk is shared and the mask a sigmoid is as in the re-implementation that
    comes with HORDE.

    Args:
        backbone: one that can be cut: it has `pieces()`, as googlenet, googlenet_bvlc and bninception.
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
        pieces: Any = getattr(backbone, "pieces", None)
        if pieces is None:
            raise ValueError(
                f"embedder=attention needs a backbone that can be cut, as googlenet: {type(backbone).__name__} has no "
                "pieces()"
            )
        names = [name for name, _ in pieces()]
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
        self._cut = names.index(cut) + 1
        trunk = [piece for _, piece in pieces()][self._cut : names.index(attention_to) + 1]
        self.trunk = nn.Sequential(*map(copy.deepcopy, trunk))
        channels, told = _channels(backbone, self._cut, self.trunk)
        self.masks = nn.Conv2d(told, channels * learners, 1)
        layers: Any = (self.masks, self.head)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self._finish(checkpoint_path, fixed=[key for key, given in (("mean", mean), ("std", std)) if given])

    def columns(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] as the backbone takes them, scaled and in channels last -> [B, sum(groups)]."""
        network: Any = self.backbone
        pieces = [piece for _, piece in network.pieces()]
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

    def join(self, columns: Tensor) -> Tensor:
        """Columns [B, sum(groups)] -> embeddings [B, dim] to search with: the learners' unit vectors side by side."""
        return joined(columns, self.groups, (1.0,) * self.learners)


@torch.no_grad()
def _channels(backbone: Any, cut: int, trunk: nn.Module) -> tuple[int, int]:
    """The channels of the maps at the cut and at the end of the trunk, by an image.

    Raises:
        ValueError: their places differ.
    """
    training = backbone.training
    backbone.eval()
    trunk.eval()
    x = trial_image(backbone)
    for _, piece in backbone.pieces()[:cut]:
        x = piece(x)
    told = trunk(x)
    backbone.train(training)
    if told.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"embedder.attention_to is not possible: its maps have {list(told.shape[2:])} places and those of "
            f"embedder.cut {list(x.shape[2:])}"
        )
    return x.shape[1], told.shape[1]
