"""What a run can be judged by while it trains: computed at the steps that are logged, and at no other."""

import logging

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

_COLLAPSED = 1e-4  # distance to the mean embedding, as a share of the mean norm, that no embedding of a batch exceeds
_BLOCK = 2**22  # entries of the distance matrix held at a time
_DISTANCES = ("positive_distance", "negative_distance")
_log = logging.getLogger(__name__)


class Diagnostics:
    """Looks at one step: at the embeddings when the loss has been computed, at their gradient when it arrives.

    It sees what every process has, the global batch, so all find the same and none waits for another. It draws no
    random number and changes no gradient. All that it finds comes to the host in one copy.
    """

    def __init__(self) -> None:
        self._step, self._images, self._seen = 0, 0, dict[str, Tensor]()
        self._active: Tensor | None = None
        self._told = False

    @torch.no_grad()
    def see(self, loss: nn.Module, embeddings: Tensor, labels: Tensor, step: int) -> None:
        """Look at a batch, for `after_backward` to tell of.

        Args:
            loss: may have a method `diagnose`: (embeddings, labels) -> dict of scalars.
            embeddings: [m, d] of the global batch.
            labels: [m].
            step: for the warning.
        """
        if embeddings.requires_grad:
            embeddings.register_hook(self._look_at_gradient)
        x = embeddings.detach().float()
        norm = x.norm(dim=1).mean()
        centred = x - x.mean(dim=0)  # distances stay, and lose fewer digits
        collapsed = centred.norm(dim=1).max() <= _COLLAPSED * norm
        self._step, self._images, self._seen = step, len(x), {"collapsed": collapsed, "embedding_norm": norm}
        with torch.autocast(x.device.type, enabled=False):
            self._seen |= _mean_distances(centred, labels)
            if diagnose := getattr(loss, "diagnose", None):
                self._seen |= diagnose(x, labels)

    def _look_at_gradient(self, gradient: Tensor) -> None:
        self._active = (gradient.detach() != 0).any(dim=1).float().mean()

    @torch.no_grad()
    def after_backward(self, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
        """What is found of the step that was seen last, as numbers of the CPU; nothing if none was seen since.

        embedding_norm, positive_distance, negative_distance are means of the batch, the distances over all pairs that
        there are; active_anchors is the share of the batch's embeddings that the loss moves: whose gradient is not
        zero; gradient_norm is the L2 norm of all gradients, before clipping. And what the loss itself can say. Warns,
        once in a run, of embeddings that have collapsed.
        """
        if self._active is None:
            return {}
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        found = {
            **self._seen,
            "active_anchors": self._active,
            "gradient_norm": torch.nn.utils.get_total_norm(gradients),
        }
        self._active, self._seen = None, {}
        values = torch.stack([torch.as_tensor(value).to(found["collapsed"].device).float() for value in found.values()])
        told = dict(zip(found, values.cpu(), strict=True))
        for name in _DISTANCES:
            if not told.pop(f"{name}, pairs"):
                del told[name]
        if told.pop("collapsed") and not self._told:
            self._told = True
            rank_zero_only(_log.warning)(
                f"step {self._step}: the embeddings have collapsed: none of the {self._images} of this batch is "
                f"further from their mean than {_COLLAPSED:g} of their norm, so their distances say nothing. "
                "docs/troubleshooting.md says what helps"
            )
        return told


def _mean_distances(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """positive_distance and negative_distance: means over all pairs of the batch, and how many there are."""
    sums, counts = x.new_zeros(2), x.new_zeros(2, dtype=torch.int64)
    for rows in torch.arange(len(x), device=x.device).split(max(1, _BLOCK // len(x))):
        d = torch.cdist(x[rows], x)
        itself = rows[:, None] == torch.arange(len(x), device=x.device)
        same = (labels[rows, None] == labels[None, :]) & ~itself
        for i, mask in enumerate((same, ~(same | itself))):
            sums[i] += torch.where(mask, d, 0).sum()
            counts[i] += mask.sum()
    found = zip(_DISTANCES, sums / counts.clamp_min(1), counts, strict=True)
    return {key: value for name, mean, pairs in found for key, value in ((name, mean), (f"{name}, pairs", pairs))}
