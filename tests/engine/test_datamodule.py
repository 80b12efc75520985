"""Batches depend on the seed alone: not on workers, not on processes, not on where a run was interrupted."""

import threading

import pytest
import torch
from torch.utils.data import SequentialSampler

from tests.engine.conftest import attach, make_data


def epoch(data, loader, number):
    data.start_epoch(number)
    return [tuple(part.clone() for part in batch) for batch in loader]


def batches(workers=0, epochs=2, **given):
    of_data = {key: given.pop(key) for key in ("seed", "light", "reads_ahead") if key in given}
    data = make_data(workers=workers, **of_data)
    attach(data, **given)
    loader = data.train_dataloader()
    return [batch for number in range(epochs) for batch in epoch(data, loader, number)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_workers_change_neither_batches_nor_pixels():
    alone = batches()
    assert len(alone) == 10 and alone[0][0].shape == (8, 3, 8, 8) and alone[0][0].dtype == torch.uint8
    assert same(alone, batches(workers=2))


def test_a_thread_that_reads_ahead_changes_neither_batches_nor_the_step():
    expected = batches(light=True, epochs=1)
    data = make_data(light=True, reads_ahead=True)
    attach(data)
    torch.manual_seed(7)
    first = torch.rand(3)
    torch.manual_seed(7)
    found, drawn, loader = [], [], data.train_dataloader()
    data.start_epoch(0)
    for batch in loader:
        found.append(batch)
        torch.manual_seed(7)  # as a step does
        for _ in range(2000):
            drawn.append(torch.rand(3))
            torch.manual_seed(7)
    assert same(found, expected)
    assert all(torch.equal(each, first) for each in drawn)


def test_the_next_batches_are_read_while_a_step_is_at_work():
    data = make_data(light=True, reads_ahead=True)
    attach(data)
    two_more = threading.Event()
    read = data._train.decode

    def decode(*given):
        decode.images += 1
        if decode.images == 3 * 8:
            two_more.set()
        return read(*given)

    decode.images, data._train.decode = 0, decode
    batches = iter(data.train_dataloader())
    next(batches)
    assert two_more.wait(60)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading ahead")]


def test_an_error_of_reading_ahead_is_raised_where_the_batch_is_asked_for():
    data = make_data(light=True, reads_ahead=True)
    attach(data)

    def broken(*_):
        raise ValueError("the image a.jpg cannot be read")

    data._train.decode = broken
    with pytest.raises(ValueError, match=r"a\.jpg"):
        next(iter(data.train_dataloader()))


def test_the_global_random_state_changes_nothing():
    expected = batches(epochs=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(batches(epochs=1), expected)
    torch.testing.assert_close(torch.get_rng_state()[:8], state[:8])  # the seed: images draw none of it


def test_the_seed_and_the_epoch_change_images_and_batches():
    found = batches()
    assert not same(found[:5], found[5:])
    assert not same(found, batches(seed=6))
    # One image, met twice: turned and shifted differently.
    place = {}
    for images, _, indices in found:
        for image, index in zip(images, indices.tolist(), strict=True):
            place.setdefault(index, []).append(image)
    twice = [images for images in place.values() if len(images) > 1]
    assert len(twice) > 10 and sum(torch.equal(images[0], images[1]) for images in twice) == 0


def test_the_parts_of_the_ranks_are_the_batch_of_one_process():
    expected = batches()
    for world_size in (2, 3):
        parts = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
        joined = [tuple(torch.cat(columns) for columns in zip(*part, strict=True)) for part in zip(*parts, strict=True)]
        assert same(joined, expected)


def test_the_ranks_share_the_test_images_without_padding():
    seen = []
    for rank in range(2):
        data = make_data(gallery=True)
        attach(data, rank=rank, world_size=2)
        (validation,) = data.val_dataloader()
        queries, gallery = data.test_dataloader()
        seen.append([[int(i) for _, _, index in loader for i in index] for loader in (validation, queries, gallery)])
    assert [sorted(left + right) for left, right in zip(*seen, strict=True)] == [
        list(range(11)),
        list(range(9)),
        list(range(6)),
    ]


@pytest.mark.parametrize(("workers", "reads_ahead"), [(0, False), (0, True), (2, False)])
def test_the_state_counts_batches_trained_on(workers, reads_ahead):
    expected = batches(light=True)
    data = make_data(workers=workers, light=True, reads_ahead=reads_ahead)
    attach(data, processed=3)
    iterator = iter(data.train_dataloader())
    for _ in range(3):
        next(iterator)
    if workers:
        assert data._sampler.position != 3  # the workers are ahead
    state = data.state_dict()
    assert (state["seed"], state["epoch"], state["position"]) == (5, 0, 3)

    resumed = make_data(workers=2 - workers, light=True)
    attach(resumed)
    resumed.load_state_dict(state)
    loader = resumed.train_dataloader()
    assert same([batch for number in (0, 1) for batch in epoch(resumed, loader, number)], expected[3:])


def test_the_state_after_the_last_batch_is_the_next_epoch():
    data = make_data()
    assert data.state_dict() == {}  # nothing was trained
    attach(data, processed=5, epoch=1)
    data.train_dataloader()
    state = data.state_dict()
    assert (state["seed"], state["epoch"], state["position"]) == (5, 2, 0)


def test_other_training_images_are_not_taken_for_the_same_run():
    data = make_data()
    attach(data)
    data.train_dataloader()
    state = data.state_dict()
    resumed = make_data()
    resumed._labels = resumed._labels[:-1]  # one was found broken
    attach(resumed)
    resumed.load_state_dict(state)
    with pytest.raises(ValueError, match="the training images are not those that this run began with"):
        resumed.train_dataloader()


def test_images_to_evaluate_come_in_order_and_untouched():
    data = make_data()
    attach(data)
    (loader,) = data.test_dataloader()
    assert isinstance(loader.sampler, SequentialSampler)
    images = torch.cat([images for images, _, _ in loader])
    expected = torch.from_numpy(data._test.records.images).permute(0, 3, 1, 2)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(device):
    # Lightning copies without waiting, which takes effect from pinned memory only.
    data = make_data(gallery=True)
    attach(data)
    data.trainer.strategy.root_device = torch.device(device)
    loaders = [data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]
    assert [loader.pin_memory for loader in loaders] == [device == "cuda"] * 4
