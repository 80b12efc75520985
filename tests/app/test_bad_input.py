"""Data with a class of one image, and a sweep over a key that does not exist, from the command to the metrics."""

from dataclasses import replace

import numpy as np
import pytest

from dml.app.checks import check_tested
from dml.data.dataset import Records, Source
from dml.engine.module import MetricLearner
from tests.app.conftest import QUIET, composed, evaluate, train, write_images
from tests.app.test_processes import end, start
from tests.retrieval import oracle


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """Classes of 4, 4, 4 and 1 images to train and to test; the lone test image is a twin of one of another class."""
    tree = write_images(tmp_path_factory.mktemp("lone") / "tree", classes=8, images=4)
    for name in ("class3", "class7"):
        for i in range(1, 4):
            (tree / name / f"{i}.png").unlink()
    (tree / "class7" / "0.png").write_bytes((tree / "class4" / "0.png").read_bytes())
    return ("data=folder", f"data.root={tree}", "protocol=paper", "evaluator.ks=[1,2]", "loader.workers=0")


@pytest.fixture
def steps(monkeypatch):
    """(labels of the batch, its loss) of every training step."""
    seen, original = [], MetricLearner.training_step

    def watched(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        seen.append((batch[1].tolist(), loss.item()))
        return loss

    monkeypatch.setattr(MetricLearner, "training_step", watched)
    return seen


@pytest.mark.parametrize("method", ["nra", "triplet", "lifted", "npair", "contrastive", "cross_entropy"])
def test_a_class_of_one_image_trains_and_is_tested(tmp_path, lone, steps, method):
    # Each class gives all it has, so every batch holds all 13 images.
    whole = ("sampler.classes_per_batch=1", "sampler.samples_per_class=13")
    run = train(tmp_path, f"method={method}", *lone, *whole, "trainer.max_steps=2")
    assert len(steps) == 2
    for labels, loss in steps:
        assert np.bincount(labels).tolist() == [4, 4, 4, 1] and np.isfinite(loss) and loss > 0

    stored = np.load(tmp_path / "test_embeddings.npz")
    x, y = stored["embeddings"], stored["labels"]
    assert y.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3]
    order, _ = oracle.ranking(x, x, np.arange(13))
    assert order[0, 0] == 12  # the twin finds the lone image first: a miss that is there only with it in the gallery
    expected = oracle.scores(order, y, y, (1, 2))  # the lone query is a miss in Recall@K and left out elsewhere
    assert {key: run.metrics[f"test/{key}"] for key in expected} == pytest.approx(expected, rel=1e-9)
    found = y[order[:12, 0]] == y[:12]
    assert not found[0] and run.metrics["test/recall@1"] == pytest.approx(found.sum() / 13)


def test_the_usual_batches_hold_a_class_of_one_image(tmp_path, lone, steps):
    usual = ("batch.classes_per_batch=3", "batch.samples_per_class=3")
    train(tmp_path, *lone, *usual, "trainer.max_steps=8")
    counts = [np.bincount(labels, minlength=4).tolist() for labels, _ in steps]
    assert len(counts) == 8 and all(sum(count) == 9 for count in counts)
    # With the lone image a fourth class fills the batch, without it three classes of three do.
    assert {tuple(sorted(count)) for count in counts} == {(1, 2, 3, 3), (0, 3, 3, 3)}
    assert all(np.isfinite(loss) for _, loss in steps)


def test_a_batch_that_small_classes_cannot_fill_is_refused(tmp_path, lone):
    with pytest.raises(ValueError, match=r"4 classes x 3 images cannot be filled.*sampler\.samples_per_class=3"):
        train(tmp_path, *lone, "batch.classes_per_batch=4", "batch.samples_per_class=3")


def test_a_sweep_over_a_key_that_does_not_exist_is_refused(tmp_path):
    sweep = ("loss.nosuch=1,2", "logger=none", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    code, out, err = end(start("train.py", "-m", *QUIET, *sweep))
    assert code == 1
    assert any(line.startswith("loss.nosuch is no key: there is") for line in err.splitlines())
    assert "Traceback" not in out + err and "/dml/" not in out + err
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize(("classes", "part"), [((0, 1, 2, 3), "training"), ((4, 5, 6, 7), "test")])
def test_a_part_without_two_images_of_a_class_is_refused_at_start(tmp_path, classes, part):
    tree = write_images(tmp_path / "tree", classes=8, images=4)
    for c in classes:
        for i in range(1, 4):
            (tree / f"class{c}" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match=rf"data: no class of the {part} part has two images"):
        train(tmp_path / "run", "data=folder", f"data.root={tree}", "protocol=paper", "evaluator.ks=[1]")


def test_more_neighbours_than_a_validation_query_has_are_refused_at_start(tmp_path):
    # 2 validation classes of 4 images: 7 neighbours; the test part has 15.
    tree = write_images(tmp_path / "tree", classes=8, images=4)
    data = ("data=folder", f"data.root={tree}", "data.val_fraction=0.5", "batch.classes_per_batch=2")
    with pytest.raises(ValueError, match=r"evaluator\.ks=\[1, 8\] .* the 7 that a query of the validation part"):
        train(tmp_path / "run", *data, "evaluator.ks=[1,8]")


def images_of(tmp_path, *sizes):
    tree = write_images(tmp_path / "tree", classes=len(sizes), images=max(sizes))
    for c, size in enumerate(sizes):
        for i in range(size, max(sizes)):
            (tree / f"class{c}" / f"{i}.png").unlink()
    return ("data=folder", f"data.root={tree}", "evaluator.ks=[1]")


@pytest.mark.parametrize(
    ("sizes", "key"), [((4, 4, 4, 4, 4), "data.train_fraction=0.8"), ((4, 4, 4, 1, 4, 1), "data.train_fraction=0.5")]
)
def test_a_test_part_of_one_class_is_refused_at_start(tmp_path, finished, sizes, key):
    # Whatever the network, every neighbour of the only class is right.
    data = (*images_of(tmp_path, *sizes), key)
    said = r"data: only one class of the test part has two images: it needs two classes with two images"
    with pytest.raises(ValueError, match=said):
        train(tmp_path / "run", *data, "protocol=paper", "batch.classes_per_batch=2")
    with pytest.raises(ValueError, match=said):
        evaluate(tmp_path / "again", finished.folder / "checkpoints" / "best.ckpt", *data)


def test_a_gallery_of_one_class_is_refused():
    records = Records(np.zeros((4, 8, 8), np.uint8), np.arange(4) // 2, ("a", "b"))
    gallery = Records(records.images, np.zeros(4, np.int64), ("a", "b"))
    source = Source("made", records, records, gallery, class_disjoint=False)
    with pytest.raises(ValueError, match="data: the gallery has one class"):
        check_tested(composed("train", "evaluator.ks=[1]"), source)
    check_tested(composed("train", "evaluator.ks=[1]"), replace(source, gallery=records))


def test_a_training_part_of_one_class_is_refused_at_start(tmp_path):
    with pytest.raises(ValueError, match="data: the training part has one class, so no anchor has a negative"):
        train(tmp_path / "run", *images_of(tmp_path, 4, 4, 4), "data.train_fraction=0.2", "protocol=paper")
