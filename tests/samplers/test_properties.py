"""Any labels, sizes and processes: batches as the sampler's docstring has them, or a ValueError when it is made."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dml.samplers.groups import GroupSampler

FORMS = {
    "list": list,
    "array": np.array,
    "int8": lambda labels: np.array(labels, dtype=np.int8),
    "strided": lambda labels: np.repeat(np.array(labels), 2)[::2],
    "backwards": lambda labels: np.array(labels[::-1])[::-1],
    "tensor": torch.tensor,
    "objects": lambda labels: np.array(labels, dtype=object),
    "huge": lambda labels: [2**63 - 60 + label if label % 2 else label + 10 - 2**63 for label in labels],
}
REFUSED = {
    "too huge": lambda labels: [*labels, 2**63, -1],
    "floats": lambda labels: [*map(float, labels), 0.5],
    "nan": lambda labels: [*labels, float("nan")],
    "objects that are none": lambda labels: np.array([*labels, 0.5], dtype=object),
    "words": lambda labels: [*map(str, labels), "class"],
    "table": lambda labels: [[label, label] for label in labels] or [[0]],
    "none": lambda labels: [*labels, None],
}
LABELS = st.one_of(
    st.lists(st.integers(-3, 12), max_size=60),
    st.integers(0, 50).map(lambda n: list(range(n))),
    st.integers(0, 50).map(lambda n: [7] * n),
    st.lists(st.integers(1, 9), max_size=12).map(lambda sizes: [i for i, n in enumerate(sizes) for _ in range(n)]),
)


@pytest.mark.parametrize("form", REFUSED)
@given(labels=LABELS)
def test_labels_that_are_no_whole_numbers(form, labels):
    with pytest.raises(ValueError, match=r"sampler\.labels"):
        GroupSampler(classes_per_batch=1, samples_per_class=1, labels=REFUSED[form](labels))


def test_a_negative_seed():
    with pytest.raises(ValueError, match=r"sampler\.seed=-1"):
        GroupSampler(classes_per_batch=1, samples_per_class=1, labels=[0], seed=-1)


@given(
    labels=LABELS,
    form=st.sampled_from([*FORMS]),
    k=st.integers(-1, 12),
    n=st.integers(-1, 8),
    seed=st.integers(0, 2**40),
    world=st.integers(0, 7),
    epoch=st.integers(0, 5),
    data=st.data(),
)
def test_any_labels(labels, form, k, n, seed, world, epoch, data):
    def make(rank=0, processes=1):
        sampler = GroupSampler(
            classes_per_batch=k,
            samples_per_class=n,
            labels=FORMS[form](labels),
            seed=seed,
            rank=rank,
            world_size=processes,
        )
        sampler.set_epoch(epoch)
        return sampler

    classes = sorted(set(labels))
    sizes = {own: labels.count(own) for own in classes}
    possible = k >= 1 and n >= 1 and k <= len(classes) and sum(min(n, size) for size in sizes.values()) >= k * n
    if not possible:
        with pytest.raises(ValueError, match=r"sampler\."):
            make()
        return
    batches = list(make())
    assert len(batches) == len(make()) == max(1, len(labels) // (k * n))
    drawn = []
    for batch in batches:
        assert len(batch) == len(set(batch)) == k * n and all(type(i) is int and 0 <= i < len(labels) for i in batch)
        groups = [(own, len(list(members))) for own, members in itertools.groupby(batch, key=lambda i: labels[i])]
        assert len({own for own, _ in groups}) == len(groups) >= k  # class after class
        assert all(count == min(n, sizes[own]) for own, count in groups[:-1])  # the last may be cut short
        assert groups[-1][1] <= min(n, sizes[groups[-1][0]])
        drawn += [own for own, _ in groups]
    # No class is drawn twice more than another, and no image of a class while another of it waits.
    counts = [drawn.count(own) for own in classes]
    assert max(counts) - min(counts) <= 1 + len(batches[0])
    taken = [index for batch in batches for index in batch]
    for own in classes:
        times = [taken.count(i) for i, label in enumerate(labels) if label == own]
        assert max(times) - min(times) <= 1
    # Processes share each batch; a sampler that is stopped and another that goes on are one.
    if not 1 <= world <= k * n:
        with pytest.raises(ValueError, match="processes"):
            make(0, world)
    else:
        parts = [list(make(rank, world)) for rank in range(world)]
        assert [list(itertools.chain(*part)) for part in zip(*parts, strict=True)] == batches
        lengths = {len(part) for own in parts for part in own}
        assert max(lengths) - min(lengths) <= 1
    stop = data.draw(st.integers(0, len(batches)))
    first, second = make(), make()
    begun = iter(first)
    before = [next(begun) for _ in range(stop)]
    second.load_state_dict(first.state_dict())
    second.set_epoch(epoch)
    assert before + list(second) == batches
    first.set_epoch(epoch + 1)
    assert list(second) == list(first)
