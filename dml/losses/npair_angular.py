"""N-pair and angular loss together, Wang, Zhou, Wen, Liu and Lin (2017), arXiv:1708.01682."""

from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from dml.losses.angular import LARGEST_ALPHA, AngularLoss
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.npair import NPairLoss


class NPairAngularLoss(nn.Module):
    """The N-pair loss of the embeddings as they are, plus angular_weight times the angular loss of their directions.

    The former takes the first pair of each class, the latter all of them.

    Args:
        alpha: angle of the angular loss, in degrees.
        angular_weight: weight of the angular loss, 0 or greater.
        l2_weight: as in `npair`, weight of the squared lengths.

    Raises:
        ValueError: alpha is out of its range, or a weight is negative.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        alpha: Annotated[float, Gt(0), Le(LARGEST_ALPHA)] = 45.0,
        angular_weight: Annotated[float, Ge(0)] = 2.0,
        l2_weight: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        require(angular_weight >= 0, "loss.angular_weight", angular_weight, "0 or greater")
        self.npair, self.angular = NPairLoss(l2_weight=l2_weight), AngularLoss(alpha=alpha)
        self.angular_weight = angular_weight

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar."""
        return self.npair(embeddings, labels) + self.angular_weight * self.angular(embeddings, labels)
