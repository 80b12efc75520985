"""What a run can be judged by while it trains: computed at the steps that are logged, and at no other."""

import logging

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

_COLLAPSED = 1e-4  # distance to the mean embedding, as a share of the mean norm, that no embedding of a batch exceeds
_BLOCK = 2**22  # entries of the distance matrix held at a time
_log = logging.getLogger(__name__)


class Diagnostics:
    """Looks at one step: at the embeddings when the loss has been computed, at their gradient when it arrives.

    It reads what every process has, the global batch, so all find the same and none waits for another. It draws no
    random number and changes no gradient.
    """

    def __init__(self) -> None:
        self._active: Tensor | None = None
        self._told = False

    @torch.no_grad()
    def see(self, loss: nn.Module, embeddings: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """Of a batch: embedding_norm, positive_distance, negative_distance (means), and what the loss itself can say.

        A batch without positive (or negative) pairs has no such distance. Warns, once in a run, of embeddings that
        have collapsed.

        Args:
            loss: may have a method `diagnose`: (embeddings, labels) -> dict of scalars.
            embeddings: [m, d] of the global batch; if they have a gradient, `after_backward` tells of it.
            labels: [m].
            step: for the warning.
        """
        if embeddings.requires_grad:
            embeddings.register_hook(self._look_at_gradient)
        x = embeddings.detach().float()
        norm = x.norm(dim=1).mean()
        centred = x - x.mean(dim=0)  # distances stay, and lose fewer digits
        found = {"embedding_norm": norm}
        with torch.autocast(x.device.type, enabled=False):
            found |= _mean_distances(centred, labels)
            if diagnose := getattr(loss, "diagnose", None):
                found |= diagnose(x, labels)
        if not self._told and bool(centred.norm(dim=1).max() <= _COLLAPSED * norm):
            self._told = True
            rank_zero_only(_log.warning)(
                f"step {step}: the embeddings have collapsed: none of the {len(x)} of this batch is further from their "
                f"mean than {_COLLAPSED:g} of their norm, so their distances say nothing. "
                "docs/troubleshooting.md says what helps"
            )
        return found

    def _look_at_gradient(self, gradient: Tensor) -> None:
        self._active = (gradient.detach() != 0).any(dim=1).float().mean()

    @torch.no_grad()
    def after_backward(self, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
        """Of the step that was seen last: active_anchors and gradient_norm; nothing if none was seen since.

        active_anchors is the share of the batch's embeddings that the loss moves: whose gradient is not zero.
        gradient_norm is the L2 norm of all gradients, before clipping.
        """
        if self._active is None:
            return {}
        active, self._active = self._active, None
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return {"active_anchors": active, "gradient_norm": torch.nn.utils.get_total_norm(gradients)}


def _mean_distances(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """positive_distance and negative_distance: means over all pairs of the batch that there are."""
    sums, counts = x.new_zeros(2), [0, 0]
    for rows in torch.arange(len(x), device=x.device).split(max(1, _BLOCK // len(x))):
        d = torch.cdist(x[rows], x)
        same = labels[rows, None] == labels[None, :]
        d[torch.arange(len(rows), device=x.device), rows] = 0  # itself
        positives = int(same.sum())
        sums += torch.stack([d[same].sum(), d[~same].sum()])
        counts[0] += positives - len(rows)
        counts[1] += same.numel() - positives
    names = ("positive_distance", "negative_distance")
    return {name: sums[i] / counts[i] for i, name in enumerate(names) if counts[i]}
