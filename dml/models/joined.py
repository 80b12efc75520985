"""Several embedders as one: their embeddings side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Joined(nn.Module):
    """Images -> the embeddings of all embedders, each an equal part of the distance: [B, sum of their D].

    Args:
        embedders: images [B, 3, H, W] -> columns, and join(columns) -> embeddings where they have groups.
        normalize: bring each embedding to length 1 first, as where distances are those of unit vectors. Then cosines
            are the mean of the embedders' cosines.
    """

    def __init__(self, embedders: Sequence[nn.Module], *, normalize: bool) -> None:
        super().__init__()
        self.embedders, self.normalize = nn.ModuleList(embedders), normalize

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        found = []
        for embedder in self.embedders:
            join = getattr(embedder, "join", None)
            one = embedder(images) if join is None else join(embedder(images))
            found.append(F.normalize(one, dim=1) if self.normalize else one)
        return torch.cat(found, dim=1)
