"""Any losses together: their weighted sum."""

from collections.abc import Mapping

from torch import Tensor, nn

from dml.losses.building_blocks.contract import checked, require
from dml.losses.building_blocks.host import Unsure, settled


class SumLoss(nn.Module):
    """sum over names of weights[name] * losses[name](embeddings, labels): a loss beside another, or a regulariser.

    Weights that a loss owns are trained too: `loss.losses.NAME` in `optimizer.groups`. The values of the parts are
    logged as train/loss/NAME. It stands inside `memory` where all its losses take anchors.

    Args:
        losses: the losses, by names that you choose.
        weights: for each name its weight.

    Raises:
        ValueError: there is no loss, names of losses and weights differ, or a name is no word or one of torch's.
    """

    min_samples_per_class = 1  # the losses have their own

    def __init__(self, *, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        require(len(losses) > 0, "loss.losses", dict(losses), "one or more losses by name")
        for name in losses:
            free = str(name).isidentifier() and not hasattr(nn.ModuleDict(), name)
            require(free, "loss.losses", name, "a name of letters and digits that torch does not use itself")
            require(name in weights, f"loss.weights.{name}", "null", f"a number: give +loss.weights.{name}=1")
        for name, weight in weights.items():
            require(name in losses, f"loss.weights.{name}", weight, f"of one of the losses {', '.join(losses)}")
        self.losses, self.weights = nn.ModuleDict(losses), dict(weights)
        self._values: dict[str, Tensor] = {}

    @checked
    def forward(self, embeddings: Tensor, labels: Tensor, *, anchors: int | None = None) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; of the first `anchors` rows as anchors only, if that is given."""
        given = {} if anchors is None else {"anchors": anchors}  # not every loss takes them
        values = {name: loss(embeddings, labels, **given) for name, loss in self.losses.items()}
        self._values = {name: value.detach() for name, value in values.items()}
        return sum((self.weights[name] * value for name, value in values.items()), embeddings.new_zeros(()))

    def diagnose(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The value of each part at the last call, before its weight, and what the parts can say themselves."""

        def look(_: Unsure) -> dict[str, Tensor]:
            found = {f"loss/{name}": value for name, value in self._values.items()}
            for name, loss in self.losses.items():
                if diagnose := getattr(loss, "diagnose", None):
                    found |= {f"{key}/{name}": value for key, value in diagnose(embeddings, labels).items()}
            return found

        return settled(look, embeddings.device)
