"""Batches of random images."""

import numpy as np
import pytest

from dml.samplers.shuffled import ShuffledSampler
from dml.testing.contracts import SamplerContract


class TestShuffled(SamplerContract):
    def build(self, **given):
        return ShuffledSampler(size=10, **given)


def test_an_epoch_shows_each_image_once_at_most_and_all_in_the_long_run():
    sampler, seen = ShuffledSampler(size=7, labels=np.zeros(24, dtype=int)), set()
    assert len(sampler) == 3
    for epoch in range(6):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [7, 7, 7]
        shown = [i for batch in batches for i in batch]
        assert len(set(shown)) == 21
        seen |= set(shown)
    assert seen == set(range(24))


def test_the_batch_may_be_the_whole_set():
    assert sorted(next(iter(ShuffledSampler(size=5, labels=[3, 3, 1, 2, 2])))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, 6])
def test_a_size_that_is_not_possible_is_refused(size):
    with pytest.raises(ValueError, match=rf"sampler\.size={size} is not possible: it must be from 1 to the 5 images"):
        ShuffledSampler(size=size, labels=[0, 0, 1, 1, 2])
