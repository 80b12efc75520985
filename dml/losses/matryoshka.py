"""Any loss on the first 32, 64, ... dimensions too (Kusupati et al. 2022, arXiv:2205.13147)."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require

_LEAST = 32  # dimensions of the shortest part that is taken by itself


class MatryoshkaLoss(nn.Module):
    """The sum over sizes m of weight_m times a loss on the first m dimensions (eq. 1), so that these serve alone.

    Weights of the loss as wide as the embeddings (proxies, a classifier) are shared: of each, the first m columns are
    used (MRL-E of the paper).

    Args:
        loss: any loss but those of groups and memories; a memory can be put around this loss.
        embedding_dim: D of the embeddings.
        sizes: how many dimensions, each at most D. None: D, half of it, a quarter, ... down to 32.
        weights: of each size, 0 or greater; None: 1 each, as in the paper.
        normalize: bring each cut to length 1 first, as a search does.

    Raises:
        ValueError: sizes or weights are not as above, or the loss cannot be cut to a part of the dimensions.
    """

    min_samples_per_class = 1  # the inner loss has its own

    def __init__(
        self,
        *,
        loss: nn.Module,
        embedding_dim: Annotated[int, Gt(0)],
        sizes: Sequence[Annotated[int, Gt(0)]] | None = None,
        weights: Sequence[Annotated[float, Ge(0)]] | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        require(embedding_dim > 0, "loss.embedding_dim", embedding_dim, "greater than 0")
        chosen = _halves(embedding_dim) if sizes is None else list(sizes)
        fits = chosen and chosen == sorted(set(chosen)) and chosen[0] > 0 and chosen[-1] <= embedding_dim
        require(bool(fits), "loss.sizes", chosen, f"different, ascending, and from 1 to the {embedding_dim} dimensions")
        given = [1.0] * len(chosen) if weights is None else list(weights)
        alike = len(given) == len(chosen) and min(given) >= 0
        require(
            alike, "loss.weights", given, f"{len(chosen)} numbers, 0 or greater: one for each of the sizes {chosen}"
        )
        name = type(loss).__name__
        if next(loss.buffers(), None) is not None or hasattr(loss, "groups"):
            outside = "put it around this one: loss=memory loss@loss.loss=matryoshka"
            what = "has groups" if hasattr(loss, "groups") else f"remembers whole embeddings; {outside}"
            raise ValueError(f"loss.loss={name} is not possible: it {what}")
        if sum(isinstance(module, nn.Linear) for module in loss.modules()) > 1:
            raise ValueError(f"loss.loss={name} is not possible: its layers are made for whole embeddings")
        self.loss, self.embedding_dim, self.normalize = loss, embedding_dim, normalize
        self.sizes, self.weights = tuple(chosen), tuple(map(float, given))

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, D], labels [m] -> scalar; of the first `anchors` rows as anchors only, if given."""
        dim = embeddings.shape[1]
        require(dim == self.embedding_dim, "loss.embedding_dim", self.embedding_dim, f"the embeddings' {dim}")
        given = {} if anchors is None else {"anchors": anchors}  # not every loss takes them
        value = embeddings.new_zeros(())
        for size, weight in zip(self.sizes, self.weights, strict=True):
            part = embeddings[:, :size]
            part = unit(part) if self.normalize else part
            cut = {
                name: weights[..., :size] for name, weights in self.loss.named_parameters() if self._is_wide(weights)
            }
            value = value + weight * functional_call(self.loss, cut, (part, labels), given)
        return value

    def _is_wide(self, weights: Tensor) -> bool:
        return weights.ndim > 1 and weights.shape[-1] == self.embedding_dim


def _halves(dim: int) -> list[int]:
    """The dimensions and their halves, ascending."""
    found = [dim]
    while found[0] % 2 == 0 and found[0] // 2 >= _LEAST:
        found.insert(0, found[0] // 2)
    return found
