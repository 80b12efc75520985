"""The picture of queries and neighbours: frames say what is right, every image is whole, any name can be drawn."""

import numpy as np
from PIL import Image

from dml.report.neighbours import Example, draw_neighbours

GREEN, RED = (46, 160, 67), (207, 34, 46)


def test_right_ones_are_green_and_wrong_ones_red(tmp_path):
    images = [
        Image.new("RGB", size, (10 * i, 0, 200)) for i, size in enumerate([(96, 96), (300, 20), (5, 400), (1, 1)])
    ]
    names = ["plain", "line\nbreak, Größe, \udcff, $5_to_$10", "x" * 300]
    examples = [Example(images[0], name, [(images[1], True), (images[2], False), (images[3], True)]) for name in names]
    path = draw_neighbours([("worst", examples), ("typical", examples[:1])], tmp_path / "retrieval.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))

    def frames(colour):  # each has so many pixels: 4 sides of 104 x 4
        return (pixels == colour).all(axis=2).sum() / (4 * 4 * 100)

    assert frames(GREEN) == 2 * 4 and frames(RED) == 4
    for i in range(4):
        assert (pixels == (10 * i, 0, 200)).all(axis=2).any()  # each image is there


def test_no_example_is_a_picture_too(tmp_path):
    assert Image.open(draw_neighbours([("worst", [])], tmp_path / "none.png")).width > 50
