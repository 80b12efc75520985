"""HIST, Lim, Yun, Park and Choi (2022): class distributions, and a hypergraph network over the batch."""

import math
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from dml.losses.building_blocks.anchors import unit
from dml.losses.building_blocks.contract import full_precision, require
from dml.losses.building_blocks.host import on_host, to_device
from dml.losses.building_blocks.proxies import product, require_fit, require_sizes

_MOST_LOG = 6.0  # of the logarithm of a variance, which is cut to 0 .. 6
_SLOPE = 0.1


class HISTLoss(nn.Module):
    """Mean cross entropy of -tau d_ic, plus ce_weight times that of a hypergraph network's logits.

    d_ic = sum_f (z_if - mu_cf)^2 / v_cf of normalised embeddings z and means mu, v = e^log_var, log_var cut to 0 .. 6.
    The hypergraph has the classes of the batch as its edges: H_ic = 1 for the own class, else e^(-alpha d_ic).
    G = Dv^-1/2 H De^-1 H^T Dv^-1/2, Dv and De the sums of the rows and columns of H, and the network is
    G second(LeakyReLU(norm(G first(x)))), of embeddings x as they are.

    Owns `means` and `log_vars` [C, d], drawn from N(0, 2 / C), linear layers `first` [d, hidden] and `second`
    [hidden, C], and a batch norm, `norm`. A log_var that begins below 0 gets no gradient, as in the authors' code.

    Args:
        embedding_dim: d of the embeddings.
        num_classes: C; labels are 0 .. C - 1. Filled in from the data.
        tau: sharpness of the class probabilities, > 0.
        alpha: the larger, the less an image belongs to other classes in the hypergraph, > 0.
        ce_weight: weight of the hypergraph network's cross entropy, 0 or greater.
        hidden: width between the two layers of that network, > 0.

    Raises:
        ValueError: one of them is out of its range.
    """

    min_samples_per_class = 2

    def __init__(
        self,
        *,
        embedding_dim: Annotated[int, Gt(0)],
        num_classes: Annotated[int, Gt(0)],
        tau: Annotated[float, Gt(0)] = 32.0,
        alpha: Annotated[float, Gt(0)] = 0.9,
        ce_weight: Annotated[float, Ge(0)] = 1.0,
        hidden: Annotated[int, Gt(0)] = 512,
    ) -> None:
        super().__init__()
        require_sizes(embedding_dim, num_classes)
        require(tau > 0, "loss.tau", tau, "greater than 0")
        require(alpha > 0, "loss.alpha", alpha, "greater than 0")
        require(ce_weight >= 0, "loss.ce_weight", ce_weight, "0 or greater")
        require(hidden > 0, "loss.hidden", hidden, "greater than 0")
        self.tau, self.alpha, self.ce_weight = tau, alpha, ce_weight
        spread = math.sqrt(2 / num_classes)
        self.means = nn.Parameter(torch.randn(num_classes, embedding_dim) * spread)
        self.log_vars = nn.Parameter(torch.randn(num_classes, embedding_dim) * spread)
        self.first, self.norm = nn.Linear(embedding_dim, hidden), nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, num_classes)

    @full_precision
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar.

        Raises:
            ValueError: embeddings are not of embedding_dim, a label is no class (looked at on a CPU only), or the batch
                is of one image, which the batch norm can make nothing of.
        """
        classes, dim = self.means.shape
        require_fit(embeddings, labels, dim, classes)
        if len(labels) < 2 and self.training:
            raise ValueError("loss=hist needs batches of 2 images or more, for its batch norm; this one has 1")
        z, means = unit(embeddings), unit(self.means.to(embeddings.dtype))
        weight = self.log_vars.to(embeddings.dtype).clamp(0, _MOST_LOG).neg().exp()  # 1 / v
        # |z - mu|^2 / v by three products, as its parts.
        d = product(z.square(), weight) - 2 * product(z, means * weight) + (means.square() * weight).sum(dim=1)
        of_distances = F.cross_entropy(-self.tau * d, labels)
        return of_distances + self.ce_weight * F.cross_entropy(self._network(embeddings, labels, d), labels)

    def _network(self, x: Tensor, labels: Tensor, d: Tensor) -> Tensor:
        """The logits [m, C] of the hypergraph network."""
        present, own = (to_device(each, labels.device) for each in on_host(labels).unique(return_inverse=True))
        h = torch.exp(-self.alpha * d[:, present])  # [m, classes of the batch]
        h = h.scatter(1, own[:, None], 1)
        scale = h.sum(dim=1, keepdim=True).rsqrt()
        edges = h.sum(dim=0)[:, None]

        def spread(values: Tensor) -> Tensor:
            """G times values [m, k], without G."""
            gathered = product(h.mT.contiguous(), (scale * values).mT) / edges
            return scale * product(h, gathered.mT)

        hidden = self._normalised(spread(_linear(self.first, x)))
        return spread(_linear(self.second, F.leaky_relu(hidden, _SLOPE)))

    def _normalised(self, values: Tensor) -> Tensor:
        """`norm` in the precision of the values, whatever that of its weights is."""
        norm: Any = self.norm  # torch's types leave open whether it has statistics
        if self.training:
            mean, variance = values.mean(dim=0), values.var(dim=0, unbiased=False)
            with torch.no_grad():
                unbiased = variance * len(values) / (len(values) - 1)
                for running, found in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                    running.lerp_(found.to(running), norm.momentum)
                norm.num_batches_tracked += 1
        else:
            mean, variance = (each.to(values.dtype) for each in (norm.running_mean, norm.running_var))
        scaled = (values - mean) * (variance + norm.eps).rsqrt()
        return scaled * norm.weight.to(values.dtype) + norm.bias.to(values.dtype)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return product(x, layer.weight.to(x.dtype)) + layer.bias.to(x.dtype)
