"""Batches of classes with those nearest to them."""

import numpy as np
import pytest
import torch

from dml.samplers.groups import GroupSampler
from dml.samplers.neighbours import NeighbourSampler
from dml.testing.contracts import SamplerContract

LABELS = np.repeat(np.arange(12), 5)
PLACES = [0.1 * c + 0.01 * c**2 for c in range(12)]


def make(**given):
    options = {"classes_per_batch": 6, "samples_per_class": 2, "labels": LABELS, "neighbours": 2}
    return NeighbourSampler(**{**options, **given})


def on_a_line(sampler):
    """Have it see classes at places of an arc, with gaps that grow: near are those before and after."""
    angles = torch.tensor(PLACES)[torch.as_tensor(LABELS)]
    sampler.see_training_set(torch.stack([angles.cos(), angles.sin()], dim=1), torch.as_tensor(LABELS))
    return sampler


class TestNeighbours(SamplerContract):
    def build(self, **given):
        return NeighbourSampler(classes_per_batch=3, samples_per_class=4, neighbours=1, **given)


def test_until_it_has_seen_the_training_set_it_is_the_plain_sampler():
    plain = list(GroupSampler(classes_per_batch=6, samples_per_class=2, labels=LABELS))
    assert list(make()) == list(on_a_line(make(neighbours=0))) == plain


def test_a_class_brings_its_nearest_and_none_is_twice_in_a_batch():
    sampler = on_a_line(make())
    for batch in sampler:
        classes = LABELS[batch].reshape(6, 2)
        assert (classes[:, 0] == classes[:, 1]).all() and len({*classes[:, 0].tolist()}) == 6
        first = classes[:, 0].tolist()
        assert first[:3] == sorted(range(12), key=lambda c, own=first[0]: abs(PLACES[c] - PLACES[own]))[:3]
    drawn = [LABELS[i] for _ in range(4) for batch in sampler for i in batch]
    assert {*drawn} == {*range(12)}  # every class has its turn


def test_a_state_knows_what_is_near():
    first = on_a_line(make())
    batches = iter(first)
    for _ in range(2):
        next(batches)
    state, second = first.state_dict(), make()
    second.load_state_dict(state)
    assert list(second) == list(batches)
    assert list(second) == list(first)  # and so is the next epoch


def test_parts_of_processes_are_the_batch_of_one():
    whole = list(on_a_line(make()))
    parts = [list(on_a_line(make(rank=rank, world_size=3))) for rank in range(3)]
    assert [[i for part in batch for i in part] for batch in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("neighbours", [-1, 12])
def test_as_many_as_there_are_classes_are_refused(neighbours):
    with pytest.raises(ValueError, match=rf"sampler\.neighbours={neighbours} is not possible: .* the 12 training"):
        make(neighbours=neighbours)
