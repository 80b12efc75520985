"""scikit-learn's digits as a source."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dml.data import digits

SIZES = np.bincount(load_digits().target)


def test_all_images_are_there_once():
    source = digits.load()
    assert len(source.train) + len(source.test) == 1797
    stored = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    both = np.concatenate([source.train.images, source.test.images])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in stored)
    assert both.dtype == np.uint8 and both.shape == (1797, 8, 8) and both.max() == 255


def test_images_keep_their_labels():
    source = digits.load()
    label_of = dict(
        zip((i.tobytes() for i in load_digits().images.astype(np.uint8)), load_digits().target, strict=True)
    )
    for records in (source.train, source.test):
        images = np.round(records.images / (255 / 16)).astype(np.uint8)
        assert [label_of[image.tobytes()] for image in images] == records.labels.tolist()
        assert records.class_names == tuple("0123456789") and records.labels.dtype == np.int64


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.1])
def test_split_is_stratified(fraction):
    source = digits.load(test_fraction=fraction)
    assert np.bincount(source.test.labels).tolist() == [round(fraction * size) for size in SIZES.tolist()]
    assert np.bincount(source.train.labels).tolist() == [size - round(fraction * size) for size in SIZES.tolist()]


def test_split_depends_on_its_seed_alone():
    first = digits.load().test.images
    np.random.seed(1)
    assert np.array_equal(digits.load().test.images, first)
    assert not np.array_equal(digits.load(split_seed=1).test.images, first)


def test_classes_are_shared_and_there_is_no_gallery():
    source = digits.load()
    assert source.name == "digits" and not source.class_disjoint and source.gallery is None


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match=r"data\.test_fraction\b"):
        digits.load(test_fraction=fraction)
