"""dml publish: a folder that loads with plain timm, a card that says what decided it, no path of this machine."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from omegaconf import OmegaConf

from dml.report.tables import mean_and_interval
from tests.use.conftest import refused, run


@pytest.fixture(scope="module")
def seeds(finished, tmp_path_factory):
    """Two further runs that differ in seed and result alone."""
    folder = tmp_path_factory.mktemp("seeds")
    stored = json.loads((finished.folder / "metrics.json").read_text())
    for seed, recall in ((1, 0.5), (2, 0.75)):
        (folder / str(seed)).mkdir()
        content = {"metrics": {**stored["metrics"], "test/recall@1": recall}, "row": {**stored["row"], "seed": seed}}
        (folder / str(seed) / "metrics.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def published(finished, seeds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    given = ("--seeds", seeds, "--name", "someone/model", "--license", "mit")
    run("publish", finished.folder, "--out", folder, *given)
    return folder


def test_the_card_says_what_decided_the_result(published, finished, model):
    card = (published / "README.md").read_text()
    head = OmegaConf.create(card.split("---\n")[1])
    assert head.license == "mit" and head.library_name == "timm" and head["model-index"][0].name == "model"
    mean, half = mean_and_interval([100 * finished.metrics["test/recall@1"], 50, 75])
    assert f"| recall@1 | {mean:.2f} % ± {half:.2f} |" in card and "over 3 runs (seeds 0, 1, 2)" in card
    for said in (
        "| test | 22 | 4 |",
        "checkpoint of step 3 of 3",
        "test_resnet (initial weights: random)",
        "`nra` on tree",
    ):
        assert said in card
    assert model.fingerprint in card and "0 of 100 ranks are other ones" in card and "torch " in card
    assert "![The worst" in card and (published / "retrieval.png").is_file()
    assert 'timm.create_model("hf-hub:someone/model"' in card
    assert huggingface_hub.ModelCard.load(published / "README.md").data.license == "mit"


def test_the_weights_are_the_runs(published, model, tree):
    import timm

    network = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
    images = torch.stack([model.read(tree / "class4" / f"{i}.png") for i in range(3)])
    with torch.no_grad():
        found = network((images / 255 - model.embedder.mean) / model.embedder.std)
    assert torch.allclose(torch.nn.functional.normalize(found), model(images), atol=1e-5)


def test_no_file_has_a_path_of_this_machine(published, tree):
    for path in published.iterdir():
        if path.suffix != ".png":
            assert str(tree.parent).encode() not in path.read_bytes(), path
    assert OmegaConf.load(published / "dml_config.yaml").data.root == tree.name


def test_a_push_hands_the_folder_over_and_a_hub_that_is_away_is_told(published, finished, monkeypatch, capsys):
    given = ("publish", finished.folder, "--out", published, "--name", "someone/model", "--push")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = refused(*given)
    assert "is written, but could not be brought to someone/model: " in said and (published / "README.md").is_file()
    done = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **more: done.append((name, more)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **more: done.append(more) or "URL")
    run(*given, "--private")
    assert done[0] == ("someone/model", {"private": True, "exist_ok": True})
    assert (done[1]["folder_path"], done[1]["repo_id"]) == (published, "someone/model")
    assert "At the hub: URL" in capsys.readouterr().out


def test_mistakes_are_one_line_and_leave_nothing(finished, seeds, published, tmp_path):
    out = ("--out", tmp_path / "x")
    assert "--push needs --name" in refused("publish", finished.folder, "--push", *out)
    checkpoint = finished.folder / "checkpoints" / "best.ckpt"
    assert "is no folder of a finished run" in refused("publish", checkpoint, *out)
    assert "is there already" in refused("publish", finished.folder, "--out", published)
    other = shutil.copytree(seeds, tmp_path / "seeds")
    content = json.loads((other / "1" / "metrics.json").read_text())
    content["row"]["loss"]["alpha"] = 7
    (other / "1" / "metrics.json").write_text(json.dumps(content))
    assert "differ in loss.alpha" in refused("publish", finished.folder, "--seeds", other, *out)
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.part").exists()
