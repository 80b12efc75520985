"""Softmax cross entropy over a linear classifier of the embeddings (Fig. 4 of the NRA paper)."""

from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.contract import checked
from dml.losses.building_blocks.proxies import require_fit, require_sizes


class CrossEntropyLoss(nn.Module):
    """Mean softmax cross entropy of `classifier(embeddings)`; the classifier trains with the network.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: number of training classes; labels are 0 .. num_classes - 1. Filled in from the data.

    Raises:
        ValueError: a size is not positive.
    """

    min_samples_per_class = 1

    def __init__(self, *, embedding_dim: Annotated[int, Gt(0)], num_classes: Annotated[int, Gt(0)]) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        self.classifier = nn.Linear(embedding_dim, num_classes)

    @checked
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, or a label is no class (looked at on a CPU only, where
                that costs nothing).
        """
        classes, dim = self.classifier.weight.shape
        require_fit(embeddings, labels, dim, classes)
        weight, bias = (each.to(embeddings.dtype) for each in self.classifier.parameters())
        return F.cross_entropy(F.linear(embeddings, weight, bias), labels)
