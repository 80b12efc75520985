"""How parts of a network learn: rules for learning rate, weight decay and start, by the names of the weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import nn

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

    def fits(self, name: str, weight: nn.Parameter) -> bool:
        """Whether the rule is about this weight."""
        if self.of == NORMS_AND_BIASES:
            return weight.ndim <= 1
        return fnmatchcase(name, self.of) or name.startswith(f"{self.of}.")


def make_optimizer(
    factory: Callable[[Iterable[Any]], torch.optim.Optimizer],
    named: Iterable[tuple[str, nn.Parameter]],
    rules: Sequence[Rule] = (),
    scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser over all weights that learn, in groups that the rules make.

    Without rules and scales it has one group, in the order of the weights. Multiples of the learning rate are applied
    to the groups of the finished optimiser, so that a schedule which scales them keeps the proportions.

    Args:
        factory: weights or groups of them -> optimiser.
        named: names and weights.
        rules: in order.
        scales: name -> another factor of the learning rate, as layer decay has it; 1 for names that are not there.

    Raises:
        ValueError: a rule fits no weight, or none that learns; names the config key.
    """
    scales = scales or {}
    named = list(named)
    learning = [(name, weight) for name, weight in named if weight.requires_grad]
    for i, rule in enumerate(rules):
        if not any(rule.fits(name, weight) for name, weight in learning):
            frozen = any(rule.fits(name, weight) for name, weight in named)
            heads = list(dict.fromkeys(".".join(name.split(".")[:2]) for name, _ in learning))
            raise ValueError(
                f"optimizer.groups.{i}.of={rule.of} fits {'only weights that are frozen' if frozen else 'no weight'}: "
                f"names begin with {', '.join(heads)}"
            )
    if not rules and not scales:
        return factory(weight for _, weight in learning)
    groups: dict[tuple[float, float | None, int], list[nn.Parameter]] = {}
    for name, weight in learning:
        lr, weight_decay, from_step = 1.0, None, 0
        for rule in rules:
            if rule.fits(name, weight):
                lr = lr if rule.lr is None else rule.lr
                weight_decay = weight_decay if rule.weight_decay is None else rule.weight_decay
                from_step = from_step if rule.from_step is None else rule.from_step
        groups.setdefault((lr * scales.get(name, 1.0), weight_decay, from_step), []).append(weight)
    given = [
        {"params": weights, "from_step": from_step, **({} if weight_decay is None else {"weight_decay": weight_decay})}
        for (_, weight_decay, from_step), weights in groups.items()
    ]
    optimizer = factory(given)
    if any(rule.weight_decay for rule in rules) and "weight_decay" not in optimizer.defaults:
        raise ValueError(f"optimizer.groups: {type(optimizer).__name__} has no weight_decay: leave it out of the rules")
    for group, (multiple, *_) in zip(optimizer.param_groups, groups, strict=True):
        group["lr"] *= multiple
    return optimizer


def hold_back(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Take away the gradients of weights that do not learn yet, just before the optimiser's step number `step`.

    They had to be computed: processes wait for each other's gradients of all weights. An optimiser does nothing with a
    weight that has none, and its state of that weight begins at its first real step.
    """
    for group in optimizer.param_groups:
        if step < group.get("from_step", 0):
            for weight in group["params"]:
                weight.grad = None
