"""Which queries are looked at, the image itself never among its neighbours; what a test leaves beside its result."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dml.app import pictures
from dml.data.dataset import Records, Source


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
        test_per_query={},
        evaluator=SimpleNamespace(normalize=False),
        config={"transform": {}},
    )
    return SimpleNamespace(source=source, model=model)


def test_neighbours_are_the_nearest_others(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "draw_neighbours", lambda groups, path: drawn.extend(groups) or path)
    pictures.draw_examples(parts := built(gallery=False), pictures.look(parts), tmp_path / "retrieval.png")
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
    pictures.draw_examples(parts := built(gallery=True), pictures.look(parts), tmp_path / "retrieval.png")
    example = drawn[0][1][0]
    assert example.found[0][0].getpixel((0, 0)) == example.query.getpixel((0, 0))


@pytest.mark.parametrize("gallery", [False, True])
def test_images_of_the_querys_group_are_no_neighbours(gallery):
    parts = built(gallery)
    groups = np.array([*"aabbacccccab"])
    others = groups[::-1].copy() if gallery else groups
    test = replace(parts.source.test, groups=groups)
    parts.source = replace(parts.source, test=test, gallery=replace(test, groups=others) if gallery else None)
    looked = pictures.look(parts)
    x, labels = parts.model.test_embeddings[0].numpy()[:, 0], parts.source.test.labels
    assert looked.grouped and looked.near.shape[1] == min(8, *(int((others != g).sum()) for g in groups))
    positives = [sum(labels[i] == labels[q] and others[i] != groups[q] for i in range(12)) for q in range(12)]
    assert looked.positives.tolist() == positives
    assert sorted(looked.sample) == [q for q in range(12) if positives[q]] and len(looked.sample) < 12
    for query, near in zip(looked.sample, looked.near, strict=True):
        allowed = [i for i in range(12) if others[i] != groups[query]]
        nearest = sorted(allowed, key=lambda i, q=query: (abs(x[i] - x[q]), i))
        assert near.tolist() == nearest[: len(near)]


def test_pictures_show_the_box_that_the_network_saw(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "draw_neighbours", lambda groups, path: drawn.extend(groups) or path)
    parts = built(gallery=False)
    boxes = np.tile([2.0, 3.0, 10.0, 7.0], (12, 1))
    parts.source = replace(parts.source, test=replace(parts.source.test, boxes=boxes))
    for cut, size in ((False, (12, 12)), (True, (8, 4))):
        drawn.clear()
        parts.model.config = {"transform": {"crop_to_box": cut}}
        pictures.draw_examples(parts, pictures.look(parts), tmp_path / "retrieval.png")
        assert {image.size for _, lines in drawn for line in lines for image, _ in line.found} == {size}


def test_a_picture_that_fails_is_told_and_ends_nothing(tmp_path, caplog):
    broken = built(gallery=False)
    broken.model.test_embeddings = (torch.full((12, 1), torch.nan), broken.model.test_embeddings[1])
    pictures.save_pictures(SimpleNamespace(loggers=[]), broken, {}, {}, tmp_path)
    assert "the result is written, but retrieval.png was not drawn" in caplog.text
    assert "the result is written, but report.html was not drawn" in caplog.text


@pytest.mark.parametrize("gallery", [False, True])
def test_what_a_test_leaves_and_hands_to_its_loggers(tmp_path, gallery):
    parts, handed = built(gallery), []
    parts.model.test_per_query = {"first_rank": np.zeros(12, dtype=np.int32)}
    logger = SimpleNamespace(
        log_image=lambda key, files: handed.append((key, files)),
        log_page=lambda key, files: handed.append((key, files)),
    )
    curves = {"val/map": [[1, 0.5], [2, 0.75]]}
    row = {"method": "nra", "data": "colours", "seed": 3, "dimension": 1}
    pictures.save_pictures(SimpleNamespace(loggers=[logger]), parts, {"test/recall@1": 0.5}, row, tmp_path, curves)
    assert handed == [
        ("test/retrieval", [str(tmp_path / "retrieval.png")]), ("test/report", [str(tmp_path / "report.html")])
    ]  # fmt: skip
    text = (tmp_path / "report.html").read_text()
    assert "nra on colours, seed 3" in text and "val/map: 0.75 in the end" in text
    stored = np.load(tmp_path / "per_query.npz")
    assert stored["labels"].tolist() == parts.source.test.labels.tolist() and not stored["first_rank"].any()
