"""data.cache changes how long a run takes, and nothing that comes out of it."""

import json

import numpy as np
import pytest
from PIL import Image

from dml.engine import datamodule
from tests.app.conftest import composed, evaluate, train

SMALL = ("data=folder", "data.val_fraction=0.5", "evaluator.ks=[1]", "batch.classes_per_batch=2", "transform=paper",
         "batch.samples_per_class=3", "transform.size=28", "transform.resize=32",
            "transform.interpolation=bilinear", "seed=2")  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos") / "tree", np.random.default_rng(0)
    for c in range(8):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(4):
            pixels = np.clip(rng.normal(28 * c + 20, 30, (30 + 9 * i, 70, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{c}" / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def runs(tree, tmp_path_factory):
    """Without, with a cache that is built, and with the one that is there."""
    folder = tmp_path_factory.mktemp("runs")
    cached = ("data.cache=disk", f"data.cache_dir={folder / 'cache'}")
    return [
        train(folder / name, *SMALL, f"data.root={tree}", "loader.workers=0", *settings)
        for name, settings in (("none", ()), ("built", cached), ("found", cached))
    ]


def test_the_result_is_the_same(runs, capsys):
    rows = [json.loads((run.folder / "metrics.json").read_text()) for run in runs]
    assert rows[0] == rows[1] == rows[2] and rows[0]["metrics"]
    (cache,) = (runs[1].folder.parent / "cache").glob("*.pixels")
    assert cache.name.startswith("tree-")


def test_other_folds_build_nothing_and_a_finished_run_stays_finished(runs, tree, tmp_path, capsys):
    folder = runs[1].folder.parent / "cache"
    cached = (*SMALL, f"data.root={tree}", "loader.workers=0", "data.cache=disk", f"data.cache_dir={folder}")
    assert train(runs[0].folder, *cached).metrics == runs[0].metrics
    assert "not run again" in capsys.readouterr().out
    train(tmp_path / "fold", *cached, "data.fold=1", "data.folds=2")
    train(tmp_path / "paper", *cached, "protocol=paper", "loss=contrastive")
    found = evaluate(tmp_path / "again", runs[1].folder / "checkpoints" / "best.ckpt").metrics
    assert found["test/recall@1"] == runs[1].metrics["test/recall@1"]
    assert "Caching" not in capsys.readouterr().out and len(list(folder.glob("*.pixels"))) == 1


def test_an_unknown_place_is_refused(tree, tmp_path):
    with pytest.raises(ValueError, match=r"data\.cache=disc is not possible: it must be one of none, disk, ram"):
        train(tmp_path, *SMALL, f"data.root={tree}", "data.cache=disc")


def test_images_in_memory_need_no_cache(tmp_path):
    train(tmp_path / "run", "data.cache=disk", f"data.cache_dir={tmp_path / 'cache'}")
    assert not (tmp_path / "cache").exists()


def test_workers_by_where_the_images_are(tree, monkeypatch):
    from dml.app import build

    def workers(*settings, ahead=False):
        data = build.build(composed("train", *settings)).data
        assert data._reads_ahead == ahead
        return data._workers

    images = (*SMALL, f"data.root={tree}")
    monkeypatch.setattr(build, "cores", lambda: 16)
    assert datamodule.cores() >= 1
    assert workers() == 0 and workers("loader.workers=3") == 3
    monkeypatch.setattr(build, "cache_images", lambda *_, **__: None)
    cached = (*images, "data.cache=disk")
    # By a thread, unless torchvision draws.
    assert workers(*cached, ahead=True) == 0 and workers(*cached, "loader.workers=1", ahead=True) == 1
    assert workers(*cached, "transform.degrees=9") == 8 and workers(*cached, "transform.train_crop=random_resized") == 8
    assert workers(*images) == 8 and workers(*images, "loader.workers=0") == 0
