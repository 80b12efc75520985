"""What stands between the features of a backbone and the embedding."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Head = Literal["linear", "norm_linear", "mlp", "none"]


class NormLinear(nn.Linear):
    """A linear layer of features that are brought to mean 0 and deviation 1, each image by itself.

    The normalisation has no weights (Teh et al. 2020, ProxyNCA++, section 3.4).
    """

    def forward(self, features: Tensor) -> Tensor:
        """[B, C] -> [B, D]."""
        return super().forward(F.layer_norm(features, features.shape[1:]))


def make_head(kind: Head, features: int, dim: int | None) -> tuple[nn.Module, int]:
    """The layers from features [B, C] to embeddings [B, D].

    Args:
        kind: linear: one layer; norm_linear: the same of normalised features; mlp: two, a ReLU between them, the hidden
            one as wide as the features (Chen et al. 2020, SimCLR); none: the features are the embedding.
        features: C.
        dim: D; None: C, where there is no head.

    Returns:
        The head, and D.

    Raises:
        ValueError: dim is none that the head can give; names the config key.
    """
    if kind == "none":
        if dim not in (None, features):
            raise ValueError(
                f"embedder.dim={dim} is not possible with embedder.head=none: the backbone gives {features} features, "
                f"so embedder.dim={features}, or null"
            )
        return nn.Identity(), features
    if dim is None:
        raise ValueError(f"embedder.dim=null is not possible with embedder.head={kind}: give embedder.dim=N")
    if kind == "mlp":
        return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim)), dim
    layers = {"linear": nn.Linear, "norm_linear": NormLinear}
    if kind not in layers:
        raise ValueError(f"embedder.head={kind} is not possible: it must be one of linear, norm_linear, mlp, none")
    return layers[kind](features, dim), dim
