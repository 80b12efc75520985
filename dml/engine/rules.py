"""Rules for learning rate, weight decay and start, by the names of the weights. Needs no torch."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from annotated_types import Ge

NORMS_AND_BIASES = "norms_and_biases"  # in the place of a pattern: weights of at most one dimension


@dataclass(frozen=True)
class Rule:
    """What some weights get that others do not. Of several rules, the last one that names a value decides it.

    Attributes:
        of: a pattern of names (`*.bias`, `embedder.backbone.layer?.*`), the beginning of names up to a dot
            (`embedder.head`, `loss`), or `norms_and_biases`: all weights of at most one dimension.
        lr: multiple of optimizer.lr.
        weight_decay: instead of optimizer.weight_decay.
        from_step: the first optimiser step that changes these weights; before it they stay as they are.
    """

    of: str
    lr: Annotated[float, Ge(0)] | None = None
    weight_decay: Annotated[float, Ge(0)] | None = None
    from_step: Annotated[int, Ge(0)] | None = None

    def fits(self, name: str, weight: Any) -> bool:
        """Whether the rule is about this weight."""
        if self.of == NORMS_AND_BIASES:
            return weight.ndim <= 1
        return fnmatchcase(name, self.of) or name.startswith(f"{self.of}.")
