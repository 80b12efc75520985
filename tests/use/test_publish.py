"""dml publish: a folder that loads with plain timm, a card that says what decided it, no path of this machine."""

import base64
import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

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


class Hub(BaseHTTPRequestHandler):
    """What a hub answers to who brings it small files; it wants a token, and remembers what it was told."""

    told: ClassVar[list] = []

    def do_GET(self):
        self.answer({"error": "Repository Not Found"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers["Authorization"] != "Bearer hf_right":
            return self.answer({"error": "Invalid username or password."}, 401)
        what = self.path.split("/")
        self.told.append((self.path, body))
        if "preupload" in what:
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        at = f"http://{self.headers['Host']}/someone/model"
        return self.answer({"url": at, "commitUrl": f"{at}/commit/{'1' * 40}", "commitOid": "1" * 40, "warnings": []})

    def answer(self, content, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body := json.dumps(content).encode())))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    Hub.told.clear()
    yield Hub.told
    server.shutdown()
    server.server_close()


def test_a_push_brings_the_folder_to_the_hub(published, finished, monkeypatch, capsys, hub):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    given = ("publish", finished.folder, "--out", published, "--name", "someone/model", "--push", "--private")
    run(*given)
    assert "At the hub: http://127.0.0.1" in capsys.readouterr().out
    (created, *_), commit = hub, dict(hub)["/api/models/someone/model/commit/main"]
    assert created[0] == "/api/repos/create" and json.loads(created[1])["visibility"] == "private"
    files = {line["value"]["path"]: line["value"] for line in map(json.loads, commit.splitlines()[1:])}
    assert files.keys() == {path.name for path in published.iterdir()}
    for name, file in files.items():
        assert base64.b64decode(file["content"]) == (published / name).read_bytes()


def test_what_a_push_meets_is_one_line_and_the_folder_stays(published, finished, monkeypatch, hub, tmp_path):
    given = ("publish", finished.folder, "--out", published, "--name", "someone/model", "--push")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = refused(*given)
    assert "is written, but could not be brought to someone/model: " in said and "401" in said
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "could not be brought to someone/model: [Errno" in refused(*given)
    assert (published / "README.md").is_file() and not hub
    new = ("publish", finished.folder, "--out", tmp_path / "new", "--push", "--name")
    assert "--name a b is not possible: " in refused(*new, "a b")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)  # whoever is logged in here
    assert "--push needs a login at the hub" in refused(*new, "someone/model")
    assert not (tmp_path / "new").exists()  # told before the work


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
