"""Learning rate schedules that torch does not have."""

import math
from typing import Annotated

from annotated_types import Ge, Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def steps_of_run(batches: float, *, max_steps: int, max_epochs: int | None, accumulated: int) -> int | None:
    """Steps of the optimiser that a run makes, if nothing ends it early; None: it has no end of its own.

    Args:
        batches: of an epoch.
        max_steps, max_epochs: as Lightning's Trainer takes them; -1 or None: no limit.
        accumulated: batches of a step; the last step of an epoch takes those that are left.
    """
    limits = [max_steps] if max_steps != -1 else []
    if max_epochs not in (None, -1):
        limits.append(math.ceil(batches / accumulated) * max_epochs)
    return min(limits, default=None)


def warmup_cosine(
    optimizer: Optimizer, *, steps: Annotated[int, Ge(1)], warmup: Annotated[float, Interval(ge=0, lt=1)]
) -> LambdaLR:
    """Linear warm-up to the optimiser's learning rate, then half a cosine down to 0.

    torch's OneCycleLR does much the same, but divides by zero for some numbers of steps and fails beyond the last.

    Args:
        optimizer: whose rates are scaled.
        steps: of the whole run; from then on the rate is 0.
        warmup: share of them that warms up, in [0, 1).

    Raises:
        ValueError: steps is not positive, or warmup is not in [0, 1).
    """
    if steps < 1:
        raise ValueError(f"scheduler.steps={steps} is not possible: it must be at least 1")
    if not 0 <= warmup < 1:
        raise ValueError(f"scheduler.warmup={warmup} is not possible: it must be 0 or greater, and less than 1")
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return LambdaLR(optimizer, factor)
