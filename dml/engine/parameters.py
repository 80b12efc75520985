"""How parts of a network learn: an optimiser in groups that rules make, and weights that wait for their first step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dml.engine.rules import Rule


def check_rules(rules: Sequence[Rule], named: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Hold rules against the names of weights.

    Raises:
        ValueError: a rule fits no weight, or none that learns; names the config key.
    """
    learning = [(name, weight) for name, weight in named if weight.requires_grad]
    for i, rule in enumerate(rules):
        if not any(rule.fits(name, weight) for name, weight in learning):
            frozen = any(rule.fits(name, weight) for name, weight in named)
            heads = list(dict.fromkeys(".".join(name.split(".")[:2]) for name, _ in learning))
            raise ValueError(
                f"optimizer.groups.{i}.of={rule.of} fits {'only weights that are frozen' if frozen else 'no weight'}: "
                f"names begin with {', '.join(heads)}"
            )


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
    check_rules(rules, named)
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


def scheduled(optimizer: torch.optim.Optimizer, factory: Callable[[torch.optim.Optimizer], Any]) -> Any:
    """A learning rate schedule of the optimiser that leaves its groups their proportions.

    Raises:
        ValueError: it gives all groups one rate, as OneCycleLR and CyclicLR do; names the config keys.
    """
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = factory(optimizer)
    after = [group["lr"] for group in optimizer.param_groups]
    if any(abs(a * before[0] - b * after[0]) > 1e-6 * abs(b * after[0]) for a, b in zip(after, before, strict=True)):
        raise ValueError(
            f"scheduler={type(schedule).__name__} gives all weights one learning rate, and optimizer.groups or "
            "optimizer.layer_decay ask for several: take a schedule that scales them, such as warmup_cosine"
        )
    return schedule


def hold_back(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Take away the gradients of weights that do not learn yet, just before the optimiser's step number `step`.

    They had to be computed: processes wait for each other's gradients of all weights. An optimiser does nothing with a
    weight that has none, and its state of that weight begins at its first real step.
    """
    for group in optimizer.param_groups:
        if step < group.get("from_step", 0):
            for weight in group["params"]:
                weight.grad = None
