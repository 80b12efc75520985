"""A frozen backbone: its features are computed once, and train and test as the images would."""

import json

import numpy as np
import pytest
import torch

from dml.app import frozen
from dml.app.build import build
from dml.app.keys import check_early
from dml.app.settings import Training
from tests.app.conftest import composed, evaluate, train

FROZEN = ("embedder.freeze=backbone", "model=convnet4")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def run(tmp_path_factory, place):
    return train(tmp_path_factory.mktemp("run"), *FROZEN, f"data.cache_dir={place}", "trainer.max_steps=6")


def test_only_the_head_learns_and_tests_as_from_images(run, place, tmp_path):
    found = run.checkpoint()
    begun = train(tmp_path / "begun", *FROZEN, f"data.cache_dir={place}", "trainer.max_steps=1").checkpoint()[
        "state_dict"
    ]
    changed = {name for name, value in found["state_dict"].items() if not torch.equal(value, begun[name])}
    assert changed == {"embedder.head.weight", "embedder.head.bias"}
    (group,) = found["optimizer_states"][0]["param_groups"]
    assert len(group["params"]) == 2
    again = evaluate(tmp_path / "again", run.folder / "checkpoints" / "last.ckpt")  # which embeds images
    tested = {name: value for name, value in run.metrics.items() if name.startswith("test/")}
    assert again.metrics == pytest.approx(tested, abs=1e-6)
    row = json.loads((run.folder / "metrics.json").read_text())["row"]
    assert row["frozen"] == "backbone: features of the test transform"


def test_features_are_those_of_the_backbone(run, place):
    files = {len(np.load(file)): np.load(file) for file in place.glob("digits-*.features.npy")}
    assert sorted(files) == [201, 450, 1146]  # validation, test, training
    cfg = composed("train", *FROZEN)
    torch.manual_seed(0)
    built = build(cfg)
    built.model.load_state_dict(run.checkpoint()["state_dict"])
    images = torch.stack([built.data.parts["test"][i][0] for i in range(5)])
    embedder = built.model.embedder.eval()
    assert embedder.train().backbone.training is False
    with torch.no_grad():
        features = embedder.features(embedder.scaled(images))
        assert torch.allclose(features, torch.from_numpy(files[450][:5]), atol=1e-5)
        assert torch.equal(embedder(features), embedder(images))


def test_they_are_computed_once_and_for_other_weights_anew(run, place, tmp_path, monkeypatch):
    computed = []
    original = frozen._computed
    monkeypatch.setattr(frozen, "_computed", lambda *given: computed.append(1) or original(*given))
    where = (*FROZEN, f"data.cache_dir={place}", "trainer.max_steps=1")
    train(tmp_path / "loss", *where, "method=triplet", "embedder.dim=8", "optimizer.lr=0.1")
    assert not computed
    train(tmp_path / "seed", *where, "seed=3")  # random weights
    assert len(computed) == 3


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(run, place, tmp_path):
    settings = (*FROZEN, f"data.cache_dir={tmp_path / 'other'}", "scheduler=none")
    straight = train(tmp_path / "straight", *settings, "trainer.max_steps=6")
    train(tmp_path / "begun", *settings)
    on = train(tmp_path / "on", *settings, "trainer.max_steps=6", f"resume={tmp_path / 'begun'}")
    a, b = straight.checkpoint(), on.checkpoint()
    assert all(torch.equal(value, b["state_dict"][name]) for name, value in a["state_dict"].items())
    assert straight.metrics == on.metrics


def test_several_crops_of_an_image_are_refused():
    with pytest.raises(ValueError, match=r"^transform\.ten_crop=true gives an image ten features"):
        check_early(composed("train", *FROZEN, "transform.ten_crop=true"), Training)
