"""Records, sources and the torch data set."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dml.data.dataset import ImageDataset, Records, Source, stratified_split
from dml.data.transforms import Transforms


def make_records(sizes, boxes=None, prefix="c", shape=(4, 4)):
    """Images whose pixels are their own number, shuffled, of classes with the given sizes."""
    n = sum(sizes)
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
    images = np.broadcast_to(np.arange(n, dtype=np.uint8).reshape(n, *[1] * len(shape)), (n, *shape)).copy()
    return Records(images, labels, tuple(f"{prefix}{c}" for c in range(len(sizes))), boxes)


def make_source(sizes, class_disjoint=True):
    test = make_records([2, 2], prefix="unseen" if class_disjoint else "c")
    return Source("made", make_records(sizes), test, class_disjoint=class_disjoint)


def numbers(records):
    """Which images these are, by their pixels."""
    return np.asarray(records.images).reshape(len(records), -1)[:, 0].tolist()


def named(records):
    """{image number: class name}."""
    return dict(zip(numbers(records), [records.class_names[label] for label in records.labels], strict=True))


def test_subset_renumbers_labels_and_keeps_names_and_boxes():
    boxes = np.arange(36).reshape(9, 4)
    records = make_records([3, 3, 3], boxes)
    chosen = np.flatnonzero(records.labels != 1)[::-1]
    part = records.subset(chosen)
    assert part.class_names == ("c0", "c2") and part.num_classes == 2 and len(part) == 6
    assert numbers(part) == chosen.tolist()
    assert named(part) == {number: named(records)[number] for number in chosen.tolist()}
    assert part.labels.dtype == np.int64 and set(part.labels.tolist()) == {0, 1}
    assert np.array_equal(part.boxes, boxes[chosen])


def test_subset_of_paths(tmp_path):
    paths = [tmp_path / str(i) for i in range(4)]
    records = Records(paths, np.array([0, 1, 1, 2]), ("a", "b", "c"))
    part = records.subset(np.array([3, 1]))
    assert list(part.images) == [paths[3], paths[1]] and part.labels.tolist() == [1, 0]
    assert part.class_names == ("b", "c") and part.boxes is None


def test_common_classes_are_refused_when_the_source_is_class_disjoint():
    train = make_records([2, 2, 2])
    other = Records(train.images, train.labels, ("x", "c2", "c1"))
    with pytest.raises(ValueError, match=r"2 test classes of made .*c1\b"):
        Source("made", train, other)
    Source("made", train, other, class_disjoint=False)
    Source("made", train, make_records([2], prefix="x"))


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7])
def test_hold_out_gives_up_whole_classes(fraction):
    source = make_source([3, 1, 5, 2, 4, 2, 2, 9, 1, 6])
    rest, validation = source.hold_out(fraction)
    assert validation.num_classes == round(10 * fraction) and rest.train.num_classes == 10 - round(10 * fraction)
    assert not set(validation.class_names) & set(rest.train.class_names)
    assert named(validation) | named(rest.train) == named(source.train)
    assert len(validation) + len(rest.train) == 35
    assert rest.test is source.test and rest.name == source.name and rest.class_disjoint and rest.notes == ()


def pairs(records):
    """Classes with two images or more."""
    return (np.bincount(records.labels) >= 2).sum()


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.25, 0.5])
@pytest.mark.parametrize("classes", range(4, 21))
def test_a_validation_part_has_two_classes(classes, fraction):
    asked = round(classes * fraction)
    if not asked:
        with pytest.raises(ValueError, match=r"data\.val_fraction"):
            make_source([3] * classes).hold_out(fraction)
        return
    source = make_source([3] * classes)
    rest, validation = source.hold_out(fraction)
    assert validation.num_classes == pairs(validation) == max(2, asked)
    assert rest.train.num_classes == classes - max(2, asked) >= 2
    assert named(validation) | named(rest.train) == named(source.train)
    if asked >= 2:
        assert rest.notes == ()
    else:
        (note,) = rest.notes
        assert f"2 of {classes} training classes, not 1 (data.val_fraction={fraction})" in note


@pytest.mark.parametrize("seed", range(20))
def test_classes_of_one_image_do_not_count_for_a_validation_part(seed):
    sizes = np.random.default_rng(seed).integers(1, 3, 12).tolist()
    source = make_source(sizes)
    rest, validation = source.hold_out(0.2)
    assert pairs(validation) >= 2 and pairs(rest.train) >= 1 and rest.train.num_classes >= 2
    assert validation.num_classes == 2 or (pairs(validation) == 2 and rest.notes)


@pytest.mark.parametrize("many", range(2, 12))
def test_a_part_that_grows_takes_no_class_of_one_image_more(many):
    source = make_source([1] * many + [5] * 3)
    rest, validation = source.hold_out(0.15)
    assert pairs(validation) == 2 and pairs(rest.train) == 1
    assert validation.num_classes <= 2 + round(0.15 * (many + 3)) and rest.train.num_classes >= 2


@pytest.mark.parametrize("sizes", [[5], [5, 5], [5, 5, 5], [5, 5, 1, 1], [5, 1, 1, 1, 1, 1]])
def test_too_few_classes_to_validate_with_are_refused(sizes):
    with pytest.raises(ValueError, match=r"data\.val_fraction=0\.3\b"):
        make_source(sizes).hold_out(0.3)


@pytest.mark.parametrize("folds", range(2, 8))
@pytest.mark.parametrize("classes", range(4, 21))
def test_every_fold_has_two_classes_or_all_are_refused(classes, folds):
    source = make_source([2] * classes)
    if classes // folds >= 2:
        parts = [source.hold_out(0.2, fold, folds) for fold in range(folds)]
        assert all(pairs(validation) >= 2 and pairs(rest.train) >= 2 for rest, validation in parts)
        assert sorted(number for _, part in parts for number in numbers(part)) == list(range(2 * classes))
        return
    for fold in range(folds):
        with pytest.raises(ValueError, match=rf"data\.folds={folds} of {classes} .*Give data\.folds={classes // 2}"):
            source.hold_out(0.2, fold, folds)


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_hold_out_is_stratified_where_classes_are_shared(fraction):
    sizes = [10, 20, 5, 30]
    source = make_source(sizes, class_disjoint=False)
    rest, validation = source.hold_out(fraction)
    assert validation.class_names == rest.train.class_names == source.train.class_names
    assert np.bincount(validation.labels).tolist() == [round(fraction * size) for size in sizes]
    assert named(validation) | named(rest.train) == named(source.train)
    assert len(validation) + len(rest.train) == 65


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("class_disjoint", [True, False])
def test_folds_partition_the_training_part(folds, class_disjoint):
    sizes = [3, 7, 5, 2, 4, 8, 6, 2, 3, 4, 5]
    source = make_source(sizes, class_disjoint)
    seen = []
    for fold in range(folds):
        rest, validation = source.hold_out(0.1, fold=fold, folds=folds)
        assert named(validation) | named(rest.train) == named(source.train)
        assert len(validation) + len(rest.train) == sum(sizes)
        assert class_disjoint != bool(set(validation.class_names) & set(rest.train.class_names))
        if class_disjoint:
            assert 11 // folds <= validation.num_classes <= 11 // folds + 1
        seen += numbers(validation)
    assert sorted(seen) == list(range(sum(sizes)))


@pytest.mark.parametrize("class_disjoint", [True, False])
def test_hold_out_depends_on_its_arguments_alone(class_disjoint):
    source = make_source([5] * 8, class_disjoint)
    first = numbers(source.hold_out(0.25)[1])
    np.random.seed(3), torch.manual_seed(3), random.seed(3)
    assert numbers(source.hold_out(0.25)[1]) == first
    assert numbers(source.hold_out(0.25, fold=0, folds=4)[1]) == first
    assert numbers(source.hold_out(0.25, fold=1, folds=4)[1]) != first
    # Drawn at random, not the first ones.
    assert source.hold_out(0.25)[1].class_names != ("c0", "c1")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"fraction": 0.0}, r"data\.val_fraction=0\.0"),
        ({"fraction": 1.0}, r"data\.val_fraction=1\.0"),
        ({"fraction": -0.5}, r"data\.val_fraction=-0\.5"),
        ({"fraction": 0.01}, r"data\.val_fraction=0\.01\b"),  # of four classes, none
        ({"fraction": 0.99}, r"data\.val_fraction=0\.99\b"),
        ({"fraction": 0.2, "fold": 5}, r"data\.fold=5\b.*4"),
        ({"fraction": 0.2, "fold": -1}, r"data\.fold=-1\b"),
        ({"fraction": 0.2, "fold": 0, "folds": 1}, r"data\.folds?\b"),
        ({"fraction": 0.2, "fold": 0, "folds": 50}, r"data\.|fold 0 of 50"),
    ],
)
@pytest.mark.parametrize("class_disjoint", [True, False])
def test_impossible_validation_parts_are_refused(arguments, key, class_disjoint):
    with pytest.raises(ValueError, match=key):
        make_source([5, 5, 5, 5], class_disjoint).hold_out(**arguments)


def test_the_same_file_is_the_same_image_whatever_leads_to_it(tmp_path):
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)

    def records(*paths, boxes=None):
        return Records(list(paths), np.zeros(len(paths), dtype=np.int64), ("x",), boxes)

    train = Records([tmp_path / "t.png"], np.zeros(1, dtype=np.int64), ("t",))
    a, _, c = (tmp_path / name for name in names)
    queries = records(c, tmp_path / "link" / "a.png", tmp_path / "." / "b.png", tmp_path / "d.png")
    assert Source("made", train, queries, records(a, c)).own_index.tolist() == [1, 0, -1, -1]
    assert Source("made", train, queries).own_index is None
    # Two items in one picture are two images.
    boxes = np.array([[0, 0, 2, 2], [2, 2, 4, 4.0]])
    both = records(a, a, boxes=boxes)
    assert Source("made", train, both, records(a, a, boxes=boxes[::-1])).own_index.tolist() == [1, 0]
    # Images in memory say nothing of where they come from.
    memory = make_records([2, 2])
    assert Source("made", make_records([2], prefix="t"), memory, memory).own_index.tolist() == [-1] * 4


def test_stratified_split():
    records = make_records([10, 4, 21])
    rest, part = stratified_split(records, 0.5, 0)
    assert np.bincount(part.labels).tolist() == [5, 2, 10]
    assert named(rest) | named(part) == named(records) and len(rest) + len(part) == 35
    assert (
        numbers(stratified_split(records, 0.5, 0)[1]) == numbers(part) != numbers(stratified_split(records, 0.5, 1)[1])
    )


CROP = Transforms(size=8, resize=24).train
TORCHVISION = Transforms(size=8, resize=24, train_crop="random_resized", degrees=30).train


def noise(n=4):
    images = np.random.default_rng(0).integers(0, 256, (n, 24, 24, 3)).astype(np.uint8)
    return Records(images, np.arange(n) % 2, ("a", "b"))


def global_states():
    return torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state())


def test_items_are_image_label_and_index():
    dataset = ImageDataset(noise(), v2.Identity())
    assert len(dataset) == 4
    for index in range(4):
        image, label, own = dataset[index]
        assert image.dtype == torch.uint8 and image.shape == (3, 24, 24)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), dataset.records.images[index])
        assert (label, own) == (index % 2, index) and type(label) is int


@pytest.mark.parametrize("transform", [CROP, TORCHVISION])
def test_items_depend_on_their_seed_alone(transform):
    dataset = ImageDataset(noise(), transform)
    for index in range(4):
        crops = []
        for state in range(3):
            torch.manual_seed(state), random.seed(state), np.random.seed(state)
            before = global_states()
            image, label, own = dataset[index, 17]
            assert global_states() == before
            assert (label, own) == (index % 2, index)
            crops.append(image)
        assert all(torch.equal(crops[0], crop) for crop in crops)


def test_other_seeds_give_other_crops():
    dataset = ImageDataset(noise(), CROP)
    crops = {dataset[2, seed][0].numpy().tobytes() for seed in range(20)}
    assert len(crops) > 15


def test_without_a_seed_the_global_state_decides():
    dataset = ImageDataset(noise(), CROP)
    torch.manual_seed(0)
    first, second = dataset[1][0], dataset[1][0]
    torch.manual_seed(0)
    assert torch.equal(dataset[1][0], first) and not torch.equal(first, second)


def test_the_global_state_survives_an_error():
    dataset = ImageDataset(noise(), TORCHVISION, decode=lambda *_: torch.zeros(3, 9, 9))  # which Pillow cannot take
    torch.manual_seed(0)
    before = global_states()
    with pytest.raises(TypeError):
        dataset[0, 5]
    assert global_states() == before


def test_worker_processes_draw_the_same():
    dataset = ImageDataset(noise(), CROP)
    items = [(index, 100 + index) for index in range(4)]
    batches = [next(iter(DataLoader(dataset, batch_sampler=[items], num_workers=workers)))[0] for workers in (0, 1)]
    assert torch.equal(*batches)


def test_blank_images_are_noticed_in_any_process():
    images = noise(6).images.copy()
    images[1], images[2], images[4] = 0, (200, 30, 4), images[4] // 17  # black, of one colour, nearly black
    for workers in (0, 2):
        dataset = ImageDataset(Records(images, np.arange(6) % 2, ("a", "b")), CROP)
        assert not dataset.looks.any()
        list(
            DataLoader(dataset, batch_sampler=[[(0, 1), (1, 2), (2, 3)], [(4, 5), (5, 6), (1, 7)]], num_workers=workers)
        )
        assert dataset.looks.tolist() == [1, 2, 2, 0, 2, 1]


def test_crop_to_box():
    records = noise()
    boxes = np.array([[0, 0, 24, 24], [3, 5, 10, 20], [23, 23, 24, 24], [0, 10, 24, 11]])
    boxed = Records(records.images, records.labels, records.class_names, boxes)
    dataset = ImageDataset(boxed, v2.Identity(), crop_to_box=True)
    for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
        expected = records.images[index][top:bottom, left:right]
        assert np.array_equal(dataset[index][0].permute(1, 2, 0).numpy(), expected)
    assert ImageDataset(boxed, v2.Identity())[1][0].shape == (3, 24, 24)


def test_crop_to_box_without_boxes_is_refused():
    with pytest.raises(ValueError, match=r"transform\.crop_to_box\b"):
        ImageDataset(noise(), CROP, crop_to_box=True)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 4), (5, 5, 5.3, 9)])
def test_boxes_without_a_pixel_are_refused_by_their_image(tmp_path, box):
    boxes = np.array([[0, 0, 5, 5], box, [0, 0, 1, 1], [2, 2, 4, 4]])
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    boxed = Records(paths, np.arange(4), tuple("abcd"), boxes)
    ImageDataset(boxed, CROP)
    with pytest.raises(ValueError, match=r"transform\.crop_to_box\b.* no pixel in 1 box .*1\.png"):
        ImageDataset(boxed, CROP, crop_to_box=True)


def test_images_are_read_from_their_paths(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, noise().images, strict=True):
        Image.fromarray(image).save(path)
    dataset = ImageDataset(Records(paths, np.arange(4), tuple("abcd")), v2.Identity())
    for index in range(4):
        assert np.array_equal(dataset[index][0].permute(1, 2, 0).numpy(), noise().images[index])
