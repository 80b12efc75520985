"""Which queries are looked at: scores against a slow loop, the image itself never among its neighbours."""

from types import SimpleNamespace

import numpy as np
import torch

from dml.app import pictures
from dml.data.dataset import Records, Source


def test_scores_are_the_mean_precision_at_the_right_ones():
    rng = np.random.default_rng(0)
    hits, r = rng.random((50, 8)) < 0.4, rng.integers(1, 9, 50)
    expected = [
        sum(row[: i + 1].sum() / (i + 1) for i in range(n) if row[i]) / n for row, n in zip(hits, r, strict=True)
    ]
    np.testing.assert_allclose(pictures.scores(hits, r), expected)


def built(gallery):
    """Images of one colour each, embedded by it: class c is colours 40 c + 0, 1, 2."""
    colours = np.array([40 * c + i for c in range(4) for i in range(3)])
    images = np.repeat(colours.astype(np.uint8), 12 * 12 * 3).reshape(-1, 12, 12, 3)
    records = Records(images, np.arange(12) // 3, ("a", "b", "c", "d"))
    x = torch.tensor(colours, dtype=torch.float32)[:, None]
    source = Source("colours", records, records, records if gallery else None, class_disjoint=False)
    model = SimpleNamespace(
        test_embeddings=(x, torch.from_numpy(records.labels)),
        test_gallery=x if gallery else None,
        evaluator=SimpleNamespace(normalize=False),
    )
    return SimpleNamespace(source=source, model=model)


def test_neighbours_are_the_nearest_others(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "draw_neighbours", lambda groups, path: drawn.extend(groups) or path)
    pictures.draw_examples(built(gallery=False), tmp_path / "retrieval.png")
    for _, examples in drawn:
        assert len(examples) == 4
        for example in examples:
            own = example.query.getpixel((0, 0))[0]
            found = [image.getpixel((0, 0))[0] for image, _ in example.found]
            assert len(found) == 8 and own not in found
            assert found == sorted(found, key=lambda colour: (abs(colour - own), colour))
            assert [right for _, right in example.found] == [colour // 40 == own // 40 for colour in found]
            assert example.name == "abcd"[own // 40]


def test_with_a_gallery_images_in_memory_are_others(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "draw_neighbours", lambda groups, path: drawn.extend(groups) or path)
    pictures.draw_examples(built(gallery=True), tmp_path / "retrieval.png")
    example = drawn[0][1][0]
    assert example.found[0][0].getpixel((0, 0)) == example.query.getpixel((0, 0))


def test_a_picture_that_fails_is_told_and_ends_nothing(tmp_path, caplog):
    broken = built(gallery=False)
    broken.model.test_embeddings = (torch.full((12, 1), torch.nan), broken.model.test_embeddings[1])
    pictures.save_pictures(SimpleNamespace(loggers=[]), broken, {}, tmp_path)
    assert "the result is written, but retrieval.png was not drawn" in caplog.text
