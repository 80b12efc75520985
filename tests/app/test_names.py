"""Nothing that a user calls his files, and no part of his own, costs a result that has been trained for."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from dml.app.errors import as_user_error
from dml.app.run import run_train
from tests.app.conftest import train

TWO = ("experiment=omniglot", "data=folder", "embedder.dim=2", "evaluator.ks=[1]", "trainer.max_steps=2")
SMALL = ("batch.classes_per_batch=2", "batch.samples_per_class=2", "loader.workers=0", "scheduler=none")
ROOT = b"gr\xf6\xdfe" + 240 * b"r"  # as long as a name may be, nearly
CLASSES = (b"m\xfcll", b"$5_to_$10_", b"a\nb", "类别".encode(), b"c" * 200, b'it\'s "q"', b"{x}", b"\\alpha")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A run on class folders and files of odd names, one of them broken, whose output knows ASCII only."""
    base = tmp_path_factory.mktemp("names")
    root = os.path.join(os.fsencode(base), ROOT)
    rng = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        os.makedirs(os.path.join(root, name))
        for i in range(4):
            with open(os.path.join(root, name, b"\xe9\t%d.png" % i), "wb") as file:
                pixels = np.clip(rng.normal(25 * c + 20, 10, (12, 10, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
    with open(os.path.join(root, CLASSES[0], b"\xe9\t0.png"), "wb") as file:
        file.write(b"broken")
    reads = ("data.on_error=skip", "data.cache=disk", f"data.cache_dir={base / 'cache'}")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        run = train(
            base / "run", *TWO, *SMALL, *reads, f"data.root='{os.fsdecode(root)}'", run=as_user_error(run_train)
        )
        out.flush()
    return run, out.buffer.getvalue().decode()


def test_a_run_ends_well_whatever_its_files_are_called(odd):
    run, said = odd
    row = json.loads((run.folder / "metrics.json").read_text())["row"]
    assert row["data"] == os.fsdecode(ROOT) and row["broken_images"] == 1
    assert Image.open(run.folder / "embedding.png").format == "PNG"
    names = np.load(run.folder / "test_embeddings.npz")["class_names"].tolist()
    assert set(names) < {os.fsdecode(name) for name in CLASSES} and len(names) == 4
    assert "Files:" in said and "test/map" in said


def test_broken_images_are_listed_by_their_names_on_disk_a_line_each(odd):
    run, _ = odd
    (line,) = (run.folder / "bad_images.txt").read_bytes().splitlines()
    path, reason = line.split(b"\t")
    assert path.endswith(ROOT + b"/m\xfcll/\xe9\\t0.png") and reason.startswith(b"cannot identify image file")


def test_a_picture_that_fails_is_told_and_the_result_stands(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr("dml.app.pictures.draw_embedding", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        run = train(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == run.metrics
    (record,) = [record for record in caplog.records if record.name == "dml.app.pictures"]
    assert "embedding.png was not drawn" in record.message and "disk full" in record.message
    assert not (tmp_path / "embedding.png").exists() and (tmp_path / "test_embeddings.npz").exists()


OWN = """
from torch import nn

from dml.losses.triplet import TripletLoss
from dml.models.embedder import Embedder
from dml.retrieval.evaluator import Evaluator
from dml.samplers.groups import GroupSampler


class Net(nn.Sequential):
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    head_hidden_size = 3

    def __init__(self, pool: int = 1):
        super().__init__(nn.AdaptiveAvgPool2d(pool), nn.Flatten())


class Plane(Embedder):
    def __init__(self, *, backbone):
        super().__init__(backbone=backbone, dim=2)


class Batches(GroupSampler):
    def __init__(self, *, half: int, labels, seed, rank, world_size):
        sizes = {"classes_per_batch": 2 * half, "samples_per_class": 4}
        super().__init__(**sizes, labels=labels, seed=seed, rank=rank, world_size=world_size)


class Loss(TripletLoss):
    def __init__(self, *, alpha: float = 1.0):
        super().__init__(margin=alpha)


class Measured:
    def __call__(self, *args, **kwargs):
        return {"recall": Evaluator(ks=(1,), metrics=("recall",))(*args, **kwargs)["recall@1"]}


class Sum(nn.Module):
    def __init__(self, *, losses):
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, embeddings, labels):
        return sum(loss(embeddings, labels) for loss in self.losses)
"""


def test_parts_of_ones_own_have_a_row_too(tmp_path, monkeypatch):
    (tmp_path / "nra.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    nra = {"_target_": "dml.losses.nra.NRALoss", "alpha": 4.0}
    parts = {
        "backbone": {"_target_": "nra.Net", "pool": 1},
        "embedder": {"_target_": "nra.Plane"},
        "sampler": {"_target_": "nra.Batches", "half": 3},
        "loss": {"_target_": "nra.Sum", "losses": [{"_target_": "nra.Loss", "alpha": 0.5}, nra]},
        "evaluator": {"_target_": "nra.Measured"},
    }

    def run_own(cfg):
        cfg.update(parts)
        return run_train(cfg)

    run = train(tmp_path / "run", "protocol.monitor=val/recall", run=run_own)
    row = json.loads((run.folder / "metrics.json").read_text())["row"]
    assert (row["backbone"], row["weights"], row["dimension"]) == ("nra.Net", None, 2)
    assert row["network"] == {"backbone": parts["backbone"], "embedder": parts["embedder"]}
    assert (row["batch"], row["freeze_bn"], row["normalize"]) == (None, None, {"training": None, "test": None})
    assert row["method"] == "nra.Sum(nra.Loss, nra)" and set(run.metrics) == {"val/recall", "test/recall"}
    sys.modules.pop("nra")
