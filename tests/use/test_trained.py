"""dml.load: the embeddings of the run's own test again, and one line where there is no finished run."""

import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import dml
from dml.engine.module import MetricLearner
from tests.use.conftest import copy_of_run


def test_embeddings_are_those_that_the_run_tested(model, finished, tree):
    stored = np.load(finished.folder / "test_embeddings.npz")
    tested = torch.from_numpy(stored["embeddings"])
    images = sorted(image for c in range(4, 8) for image in (tree / f"class{c}").iterdir())
    assert len(images) == len(tested) == 22  # a transparent one and one of 16 bits among them
    found = model.embed(images, batch_size=7)
    assert torch.allclose(found, torch.nn.functional.normalize(tested), atol=1e-5)
    assert model.normalized and model.dim == 2 and not model.embedder.training


def test_arrays_and_strings_are_images_too(model, tree):
    path = tree / "class0" / "0.png"
    assert torch.equal(
        model.embed([str(path)]), model.embed([model.transforms.decode(path, None).movedim(0, 2).numpy()])
    )
    assert model.embed([]).shape == (0, 2)


def test_the_fingerprint_is_that_of_weights_and_reading(model, finished, tmp_path):
    assert dml.load(finished.folder / "checkpoints" / "best.ckpt").fingerprint == model.fingerprint
    assert dml.load(copy_of_run(finished, tmp_path / "run")).fingerprint != model.fingerprint


def test_a_run_that_is_not_finished_is_refused_and_its_checkpoint_is_not(finished, tmp_path):
    unfinished = shutil.copytree(finished.folder, tmp_path / "run")
    (unfinished / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"is a run that is not finished .* resume it, or name its checkpoint itself"):
        dml.load(unfinished)
    assert dml.load(unfinished / "checkpoints" / "last.ckpt").dim == 2
    with pytest.raises(ValueError, match="is a folder without checkpoints"):
        dml.load(tmp_path)


def test_parts_of_strangers_need_trust(finished, tmp_path):
    checkpoint = finished.checkpoint("best")
    checkpoint["dml_config"]["backbone"]["_target_"] = "os.system"
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="could run any code"):
        dml.load(tmp_path / "x.ckpt")


def test_lightning_loads_and_predicts(model, finished, tree):
    learner = MetricLearner.load_from_checkpoint(finished.folder / "checkpoints" / "best.ckpt")
    images = torch.stack([model.read(tree / "class5" / f"{i}.png") for i in range(3)])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(**quiet)
    batches = trainer.predict(learner, DataLoader(TensorDataset(images), batch_size=2))
    assert torch.allclose(torch.nn.functional.normalize(torch.cat(batches)), model(images), atol=1e-5)
