import numpy as np
import pytest
import torch
from PIL import Image

from dml.losses import nra
from dml.report.figures import draw_alpha_sweep, draw_embedding, draw_side_by_side, transfer
from dml.report.runs import Run


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
    path, pdf, svg = draw_side_by_side(panels, tmp_path / "both.png")
    assert pdf.read_bytes().startswith(b"%PDF") and b"<svg" in svg.read_bytes()
    one = Image.open(draw_embedding(panels[0][1], None))
    assert Image.open(path).size == (2 * one.size[0], one.size[1])


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 4, 6])
def test_the_transfer_function_is_that_of_the_loss(alpha):
    ranks = np.linspace(0, 1, 101)
    wanted = nra.transfer(torch.from_numpy(ranks), alpha)[0].numpy()
    np.testing.assert_allclose(transfer(ranks, alpha), wanted, rtol=0, atol=1e-15)


def test_a_sweep_of_alpha_has_two_panels_of_formulas_and_one_a_data_set(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    original = Axes.errorbar

    def errorbar(self, x, y, yerr, **kwargs):
        drawn.append((list(x), list(y), list(yerr), kwargs["label"]))
        return original(self, x, y, yerr, **kwargs)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    limits, set_ylim = [], Axes.set_ylim
    monkeypatch.setattr(Axes, "set_ylim", lambda *given, **k: limits.append(given[1:]) or set_ylim(*given, **k))
    (tmp_path / "again").mkdir()
    runs = {
        alpha: [Run(tmp_path, {"test/recall@1": r + d, "test/map": 0}, {}) for d in (0, 0.2)]
        for alpha, r in ((4.0, 0.7), (1.0, 0.5), (2.0, 0.6))
    }
    title = "nra: $5 and $10, 2 dimensions"
    path, _, svg = draw_alpha_sweep({title: runs}, tmp_path / "figure3.png")
    assert Image.open(path).size[0] >= 1500
    again = draw_alpha_sweep({title: runs}, tmp_path / "again" / "figure3.png")[2]
    assert again.read_bytes() == svg.read_bytes()
    (alphas, means, halves, label), _ = drawn
    assert alphas == [1.0, 2.0, 4.0] and label == "recall@1"
    assert limits.count((0, 100)) == 2  # where an interval is from -67 to 187
    assert means == pytest.approx([60, 70, 80]) and halves == pytest.approx([127.06204736] * 3)
