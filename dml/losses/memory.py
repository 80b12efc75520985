"""Cross-batch memory (Wang, Zhang, Huang and Scott 2020): embeddings of earlier batches as positives and negatives."""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from dml.losses.building_blocks.contract import checked, require, without_anchors
from dml.losses.building_blocks.host import on_host, tell_host, to_device


class CrossBatchMemory(nn.Module):
    """A pair loss whose anchors are the batch, and whose positives and negatives are the batch and the latest batches.

    Embeddings drift slowly once training has settled, so those of earlier steps still serve: the loss sees `size` more
    of them at the cost of a matrix product. They are kept without gradient. Unlike Wang et al., who compare the batch
    with a copy of itself in the memory, the batch's own members get their gradient from both sides, as without memory.
    Every process of several keeps the same memory, as each sees the global batch.

    Args:
        loss: a loss that is a sum over anchors: contrastive, triplet, NRA and others.
        size: how many embeddings are kept; the oldest go first.
        start_step: the first step whose embeddings are kept; until then this is the plain loss (1,000 in the paper).
        embedding_dim: D of the embeddings.

    Raises:
        ValueError: the loss cannot tell anchors from others, a size is not positive, or start_step is negative.
    """

    min_samples_per_class = 2
    embeddings: Tensor
    labels: Tensor

    def __init__(
        self,
        *,
        loss: nn.Module,
        size: Annotated[int, Gt(0)] = 4096,
        start_step: Annotated[int, Ge(0)] = 1000,
        embedding_dim: Annotated[int, Gt(0)],
    ) -> None:
        super().__init__()
        wanted = "a loss whose forward takes anchors, as contrastive, triplet, nra or multi_similarity"
        require((name := without_anchors(loss)) is None, "loss.loss", name, wanted)
        require(size > 0, "loss.size", size, "greater than 0")
        require(embedding_dim > 0, "loss.embedding_dim", embedding_dim, "greater than 0")
        require(start_step >= 0, "loss.start_step", start_step, "0 or greater")
        self.loss, self.start_step = loss, start_step
        self.register_buffer("embeddings", torch.zeros(size, embedding_dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        # Plain numbers, which the host can read without waiting for the device.
        self.step = self.stored = 0

    @checked
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings [m, d], labels [m] -> scalar; the batch is remembered for the next calls.

        Raises:
            ValueError: embeddings are not of embedding_dim.
        """
        dim = self.embeddings.shape[1]
        require(embeddings.shape[1] == dim, "loss.embedding_dim", dim, f"the embeddings' {embeddings.shape[1]}")
        known = on_host(self.labels)
        seen = torch.cat([labels, self.labels[: self.stored]])
        tell_host(seen, torch.cat([on_host(labels), known[: self.stored]]))
        value = self.loss(torch.cat([embeddings, self.embeddings[: self.stored]]), seen, anchors=len(labels))
        if self.step >= self.start_step:
            newest = slice(-len(self.labels), None)  # of a batch that is larger than the memory
            new, own = embeddings.detach()[newest], labels[newest]
            place = torch.arange(self.stored, self.stored + len(own)) % len(self.labels)
            known = known.index_copy(0, place, on_host(labels)[newest])
            place = to_device(place, labels.device)
            self.embeddings[place], self.labels[place] = new.to(self.embeddings), own
            tell_host(self.labels, known)
            self.stored += len(own)
        self.step += 1
        return value

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint carries beside the memory."""
        return {"step": self.step, "stored": self.stored}

    def set_extra_state(self, state: Any) -> None:
        """Go on from there."""
        self.step, self.stored = state["step"], state["stored"]
