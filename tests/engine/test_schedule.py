import math

import pytest
import torch

from dml.engine.schedule import warmup_cosine


def rates(steps: int, warmup: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = warmup_cosine(optimizer, steps=steps, warmup=warmup)
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_hand_computed_rates():
    cosine = [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(9)]
    assert rates(10, 0.2) == pytest.approx([0.1 / 3, 0.2 / 3, *(0.1 * c for c in cosine)])


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_any_length_ends_at_zero(steps, warmup):
    seen = rates(steps, warmup)
    assert all(0 <= rate <= 0.1 for rate in seen)
    assert seen[-1] == pytest.approx(0, abs=1e-12)


def test_unknown_share_is_refused():
    with pytest.raises(ValueError, match=r"scheduler\.warmup=1"):
        warmup_cosine(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), steps=3, warmup=1)
