import numpy as np
from PIL import Image

from dml.report.figures import draw_embedding, draw_side_by_side


def colours(path) -> int:
    """How many strong colours a picture has: axes and text are gray."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    strong = pixels[np.ptp(pixels, axis=1) > 80]
    return len(np.unique(strong // 64, axis=0))


def test_embedding_shows_a_colour_a_class(write_run):
    folder = write_run("a")
    path = draw_embedding(folder, 0.9)
    assert path == folder / "embedding.png"
    assert Image.open(path).size[0] >= 500
    assert colours(path) >= 3


def test_side_by_side_is_as_wide_as_its_panels(tmp_path, write_run):
    panels = [("nra", write_run("a"), 0.9), ("lifted", write_run("b", seed=1), 0.8)]
    path = draw_side_by_side(panels, tmp_path / "both.png")
    one = Image.open(draw_embedding(panels[0][1], None))
    assert Image.open(path).size == (2 * one.size[0], one.size[1])
