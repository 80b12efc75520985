"""Images of one colour, or nearly black."""

import numpy as np
import pytest

from dml.data.dataset import ImageDataset, Records
from dml.engine.blank import BlankImages
from tests.engine.conftest import make_data, make_learner, make_trainer


@pytest.mark.parametrize("workers", [0, 1])
def test_blank_images_are_told_once_a_part(tmp_path, caplog, workers):
    data = make_data(workers=workers)
    for dataset in data.parts.values():
        assert isinstance(dataset, ImageDataset)
    data.parts["training"].records.images[[3, 8, 9]] = 7
    data.parts["test"].records.images[5] = 200
    trainer, learner = make_trainer(tmp_path, 7, BlankImages()), make_learner()
    trainer.fit(learner, data)  # of 40 images in batches of 8, which are validated after 2 steps
    trainer.test(learner, data, verbose=False)
    said = [record.getMessage() for record in caplog.records if record.name == "dml.engine.blank"]
    assert len(said) == 2
    assert said[0].startswith("training: of one colour or nearly black: ")
    assert (
        said[1].startswith("test: of one colour or nearly black: 1 of the 9 images met so far")
        and "number 5" in said[1]
    )


def test_whole_images_are_not_told(tmp_path, caplog):
    trainer = make_trainer(tmp_path, 3, BlankImages())
    trainer.fit(make_learner(), make_data())
    assert not [record for record in caplog.records if record.name == "dml.engine.blank"]


def test_a_path_is_named(caplog):
    images = [f"x{i}\n.png" for i in range(3)]
    BlankImages()._tell("training", images, np.array([True, True, False]), np.array([False, True, False]))
    assert "black: 1 of the 2 images" in caplog.text and "x1\\n.png" in caplog.text
    assert Records(images, np.arange(3), tuple("abc")).sizes["classes"] == 3
