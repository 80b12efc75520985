"""The paper's batches of k classes x n images, section III of arXiv:1909.09427."""

import pickle
import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dml.samplers.groups import GroupSampler

EVEN = [6] * 9
# Class sizes from 1 to 40, so that small classes give all they have and large ones are never used up.
UNEVEN = [1, 40, 2, 3, 7, 1, 12, 5, 2, 4]
CASES = [
    (EVEN, 3, 2),
    (EVEN, 9, 6),  # the batch is the whole set
    (EVEN, 4, 4),  # neither the classes nor their images divide evenly
    (EVEN, 1, 1),
    ([1] * 11, 4, 1),
    (UNEVEN, 3, 4),
    (UNEVEN, 5, 7),
    (UNEVEN, 10, 1),
    ([5, 5, 2], 2, 5),
    ([3, 2, 3], 2, 4),  # all images, of more than k classes
]


def make_labels(sizes, names=None, seed=0):
    """Class sizes -> shuffled labels."""
    names = range(len(sizes)) if names is None else names
    return np.random.default_rng(seed).permutation(np.repeat(list(names), sizes)).tolist()


def make(sizes, k, n, **options):
    return GroupSampler(classes_per_batch=k, samples_per_class=n, labels=make_labels(sizes), **options)


def groups_of(batch, labels):
    """A batch -> [(class, its images)] in the order of the batch."""
    groups = []
    for index in batch:
        if not groups or groups[-1][0] != labels[index]:
            groups.append((labels[index], []))
        groups[-1][1].append(index)
    return groups


@pytest.mark.parametrize(("sizes", "k", "n"), CASES)
def test_batches_are_full_and_distinct_and_come_class_after_class(sizes, k, n):
    labels, sampler = make_labels(sizes), make(sizes, k, n)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert len(batch) == len(set(batch)) == k * n
            assert all(type(index) is int and 0 <= index < len(labels) for index in batch)
            groups = groups_of(batch, labels)
            assert len({c for c, _ in groups}) == len(groups) >= k
            # All but the last class added give n images, or all they have.
            assert all(len(images) == min(n, sizes[c]) for c, images in groups[:-1])
            assert 1 <= len(groups[-1][1]) <= min(n, sizes[groups[-1][0]])


def test_classes_that_are_large_enough_give_n_each():
    for batch in make(EVEN, 3, 4):
        assert [len(images) for _, images in groups_of(batch, make_labels(EVEN))] == [4, 4, 4]


def test_the_last_class_added_is_cut_short():
    labels = make_labels([3, 3, 3])
    for batch in GroupSampler(classes_per_batch=2, samples_per_class=4, labels=labels):
        assert [len(images) for _, images in groups_of(batch, labels)] == [3, 3, 2]


@pytest.mark.parametrize(
    ("sizes", "k", "n", "batches"), [(EVEN, 3, 2, 9), (EVEN, 4, 4, 3), (EVEN, 9, 6, 1), ([5, 5, 4], 2, 5, 1)]
)
def test_epoch_is_the_number_of_whole_batches(sizes, k, n, batches):
    sampler = make(sizes, k, n)
    assert len(sampler) == len(list(sampler)) == batches == max(1, sum(sizes) // (k * n))


@pytest.mark.parametrize(("sizes", "k", "n"), CASES)
def test_nothing_is_drawn_again_while_another_waits(sizes, k, n):
    labels = make_labels(sizes)
    for seed in range(10):
        class_draws = np.zeros(len(sizes), dtype=int)
        image_draws = np.zeros(len(labels), dtype=int)
        for batch in make(sizes, k, n, seed=seed):
            for c, images in groups_of(batch, labels):
                assert class_draws[c] == class_draws.min()
                class_draws[c] += 1
                members = np.flatnonzero(np.asarray(labels) == c)
                for image in images:
                    assert image_draws[image] == image_draws[members].min()
                    image_draws[image] += 1


def test_an_epoch_that_divides_evenly_shows_every_image_once():
    batches = list(make(EVEN, 3, 2))
    assert sorted(chain.from_iterable(batches)) == list(range(54))


def test_all_choices_are_equally_likely():
    sampler = make([5] * 6, 2, 2)
    first = np.zeros(6)
    images = np.zeros(30)
    labels = make_labels([5] * 6)
    for epoch in range(600):
        sampler.set_epoch(epoch)
        batch = next(iter(sampler))
        first[labels[batch[0]]] += 1
        images[batch] += 1
    assert first.min() > 60 and first.max() < 140  # 100 expected, deviation 9
    assert images.min() > 45 and images.max() < 120  # 80 expected, deviation 9


def test_batches_depend_on_seed_and_epoch_alone():
    def draw(seed, epoch):
        sampler = make(UNEVEN, 3, 4, seed=seed)
        sampler.set_epoch(epoch)
        return [tuple(batch) for batch in sampler]

    drawn = {(seed, epoch): draw(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len({tuple(batches) for batches in drawn.values()}) == 16
    for (seed, epoch), batches in drawn.items():
        assert draw(seed, epoch) == batches


def test_set_epoch_chooses_and_without_it_the_next_epoch_is_drawn():
    sampler = make(EVEN, 3, 2)
    zero, one, two = list(sampler), list(sampler), list(sampler)
    assert zero != one != two != zero
    sampler.set_epoch(1)
    assert list(sampler) == one
    sampler.set_epoch(0)
    assert list(sampler) == zero
    sampler.set_epoch(2)
    sampler.set_epoch(2)
    assert list(sampler) == two


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loop_over_a_data_loader_sees_new_batches_each_epoch_and_the_same_ones_again(workers):
    def train():
        loader = DataLoader(list(range(54)), batch_sampler=make(EVEN, 3, 2, seed=4), num_workers=workers)
        return [[batch.tolist() for batch in loader] for _ in range(3)]

    epochs, expected = train(), make(EVEN, 3, 2, seed=4)
    for number, batches in enumerate(epochs):
        expected.set_epoch(number)
        assert batches == list(expected)
    assert epochs[0] != epochs[1] != epochs[2] and train() == epochs


def test_a_loop_left_early_goes_on_and_an_iterator_left_behind_counts_for_nothing():
    sampler, batches = make(EVEN, 3, 2), list(make(EVEN, 3, 2))
    left = iter(sampler)
    assert [next(left), next(left)] == batches[:2]
    assert list(sampler) == batches[2:]
    sampler.set_epoch(5)
    assert next(iter(sampler)) != batches[2]
    assert list(left) == batches[2:]
    assert sampler.state_dict() == {"seed": 0, "epoch": 5, "position": 1}


def test_going_to_another_epoch_starts_at_its_beginning():
    sampler = make(EVEN, 3, 2)
    sampler.set_epoch(3)
    expected = list(sampler)
    sampler.set_epoch(2)
    iterator = iter(sampler)
    next(iterator), next(iterator)
    sampler.set_epoch(3)
    assert list(sampler) == expected


def global_states():
    torch_state = torch.get_rng_state().tolist()
    return torch_state, random.getstate(), pickle.dumps(np.random.get_state())


def test_global_random_states_are_neither_used_nor_changed():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = global_states()
        results.append(list(make(UNEVEN, 3, 4)))
        assert global_states() == before
    assert results[0] == results[1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("k", "n"), [(3, 2), (5, 1), (2, 4), (5, 3)])
def test_the_ranks_parts_in_order_are_the_batch_of_one_process(world_size, k, n):
    single = make(EVEN, k, n, seed=3)
    single.set_epoch(2)
    ranks = [make(EVEN, k, n, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for sampler in ranks:
        sampler.set_epoch(2)
        assert len(sampler) == len(single)
    for batch, *parts in zip(single, *ranks, strict=True):
        assert list(chain.from_iterable(parts)) == batch
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 4, 8, 9])
def test_a_resumed_sampler_hands_out_exactly_the_rest(done, world_size):
    old = make(EVEN, 3, 2, seed=5, world_size=world_size)
    old.set_epoch(7)
    iterator = iter(old)
    for _ in range(done):
        next(iterator)
    state = pickle.loads(pickle.dumps(old.state_dict()))
    rest = list(iterator)
    assert len(rest) == 9 - done

    new = make(EVEN, 3, 2, seed=99, world_size=world_size)  # the seed is part of the state
    new.load_state_dict(state)
    assert new.state_dict() == state
    assert list(new) == rest

    # The epoch after a resumed one is whole again, set or not.
    assert new.state_dict() == {"seed": 5, "epoch": 8, "position": 0}
    old.set_epoch(8), new.set_epoch(8)
    following = list(new)
    assert len(following) == 9 and following == list(old)


def test_set_epoch_of_the_current_epoch_keeps_the_restored_position():
    old = make(EVEN, 3, 2)
    old.set_epoch(2)
    batches = list(old)
    new = make(EVEN, 3, 2)
    new.load_state_dict({"seed": 0, "epoch": 2, "position": 4})
    new.set_epoch(2)
    assert list(new) == batches[4:]
    old.set_epoch(3)
    assert list(new) == list(old)  # used up: the next one follows


def test_state_counts_the_batches_handed_out():
    sampler = make(EVEN, 3, 2, seed=4)
    sampler.set_epoch(6)
    assert sampler.state_dict() == {"seed": 4, "epoch": 6, "position": 0}
    for number, _ in enumerate(sampler):
        assert sampler.state_dict() == {"seed": 4, "epoch": 6, "position": number + 1}
    assert sampler.state_dict() == {"seed": 4, "epoch": 7, "position": 0}


def test_labels_may_be_any_numbers_in_any_container():
    names = [40, -3, 7, 1000, 12]
    expected = list(GroupSampler(classes_per_batch=2, samples_per_class=3, labels=make_labels([4] * 5, sorted(names))))
    for labels in (np.asarray(make_labels([4] * 5, sorted(names))), tuple(make_labels([4] * 5, sorted(names)))):
        assert list(GroupSampler(classes_per_batch=2, samples_per_class=3, labels=labels)) == expected


def test_data_loader_takes_it_as_its_batch_sampler():
    loader = DataLoader(list(range(54)), batch_sampler=make(EVEN, 3, 2))
    assert [batch.tolist() for batch in loader] == list(make(EVEN, 3, 2))


@pytest.mark.parametrize(
    ("sizes", "options", "key"),
    [
        (EVEN, {"classes_per_batch": 0}, r"sampler\.classes_per_batch=0\b"),
        (EVEN, {"classes_per_batch": -2}, r"sampler\.classes_per_batch=-2\b"),
        (EVEN, {"samples_per_class": 0}, r"sampler\.samples_per_class=0\b"),
        (EVEN, {"samples_per_class": -1}, r"sampler\.samples_per_class=-1\b"),
        (EVEN, {"classes_per_batch": 28}, r"sampler\.classes_per_batch\b"),  # larger than the set
        ([], {}, r"sampler\.classes_per_batch\b"),
        (EVEN, {"classes_per_batch": 10}, r"sampler\.classes_per_batch=10\b.*\b9\b"),
        ([1, 1, 1, 20], {"classes_per_batch": 3, "samples_per_class": 3}, r"sampler\.samples_per_class=3\b"),
        (EVEN, {"rank": 2, "world_size": 2}, r"rank 2 of 2\b"),
        (EVEN, {"rank": -1, "world_size": 2}, r"rank -1 of 2\b"),
        (EVEN, {"rank": 0, "world_size": 7}, r"rank 0 of 7\b.*\b6\b"),  # an empty part
    ],
)
def test_what_cannot_be_drawn_is_refused(sizes, options, key):
    options = {"classes_per_batch": 3, "samples_per_class": 2, **options}
    with pytest.raises(ValueError, match=key):
        GroupSampler(labels=make_labels(sizes), **options)


def test_a_batch_that_just_fits_is_drawn():
    # min(size, 3) summed is 6: exactly one batch.
    assert len(next(iter(make([1, 1, 1, 20], 2, 3)))) == 6
    # Of four images a class it would be 7 of 8.
    with pytest.raises(ValueError, match=r"sampler\.samples_per_class=4\b"):
        make([1, 1, 1, 20], 2, 4)
