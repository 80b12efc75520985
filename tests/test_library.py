"""dml without its command line: the page's snippets run, parts load little, Lightning takes loaders of one's own."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dml.engine.module import MetricLearner
from dml.losses.nra import NRALoss
from dml.losses.triplet import TripletLoss
from dml.retrieval.evaluator import Evaluator
from dml.samplers.groups import GroupSampler
from tests.use.conftest import finished, tree  # noqa: F401  (fixtures of the session)

ROOT = Path(__file__).parents[1]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_the_snippets_of_the_page_run(finished, tree, tmp_path, monkeypatch):  # noqa: F811
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "library.md").read_text(), flags=re.M | re.S)
    assert len(snippets) == 6
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_bytes((tree / "class5" / "1.png").read_bytes())
    Path("conf").symlink_to(ROOT / "conf")
    HydraConfig.instance().cfg = None  # as in a notebook
    names = {}
    for snippet in snippets:
        snippet = snippet.replace('outputs/DATE/TIME")', f'{finished.folder}")')
        exec(compile(snippet.replace("pl.Trainer(", "pl.Trainer(accelerator='cpu', "), "library.md", "exec"), names)
    assert names["model"].embed(["a.jpg"]).shape == (1, 2) and len(names["misses"]) < 400
    assert names["by_class"]["map@r"].keys() == set(range(10))
    (metrics,) = Path("outputs").glob("*/*/metrics.json")
    assert '"data": "digits"' in metrics.read_text() and names["metrics"]["test/recall@1"] > 0


def test_what_the_page_for_users_of_another_library_names_is_there():
    page = (ROOT / "docs" / "from_pytorch_metric_learning.md").read_text()
    named = [name for name in re.findall(r"`(?:dml\.losses\.)?(\w+\.\w+)[`(]", page) if not name.startswith("losses.")]
    losses = [name.split(".") for name in named if name.endswith(("Loss", "Memory"))]
    assert len(losses) >= 6
    for module, loss in losses:
        assert hasattr(importlib.import_module(f"dml.losses.{module}"), loss)
    for module in re.findall(r"`([a-z_]+)`(?:,| \|)", page.partition("`distances.*`")[0]):
        assert (ROOT / "dml" / "losses" / f"{module}.py").is_file(), module


def test_importing_losses_samplers_and_retrieval_is_light():
    code = """
import importlib, pkgutil, sys
import dml.losses.building_blocks, dml.retrieval, dml.samplers
for package in (dml.losses, dml.losses.building_blocks, dml.retrieval, dml.samplers):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
heavy = {"hydra", "omegaconf", "pytorch_lightning", "wandb", "matplotlib", "torchvision", "timm", "sklearn"}
print(sorted(heavy & set(sys.modules)), "dml.losses.nra" in sys.modules, "dml.retrieval.evaluator" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout == "[] True True\n"


class Own(pl.LightningDataModule):
    """Loaders of (image, label), as users have them."""

    def __init__(self, x, y):
        super().__init__()
        self.pairs = TensorDataset(x, y)
        self.sampler = GroupSampler(classes_per_batch=3, samples_per_class=2, labels=y.tolist())

    def train_dataloader(self):
        return DataLoader(self.pairs, batch_sampler=self.sampler)

    def val_dataloader(self):
        return DataLoader(self.pairs, batch_size=5)

    test_dataloader = predict_dataloader = val_dataloader


def test_fit_test_and_predict_take_a_data_module_of_ones_own():
    torch.manual_seed(0)
    x, y = torch.randn(24, 6), torch.arange(24) % 4
    network = nn.Linear(6, 3)
    learner = MetricLearner(
        embedder=network, loss=NRALoss(), evaluator=Evaluator(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )
    before, data = network.weight.clone(), Own(x, y)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", **QUIET)
    trainer.fit(learner, data)
    assert trainer.global_step == 8 and not torch.equal(network.weight, before) and data.sampler.epoch >= 1
    trainer.test(learner, data, verbose=False)
    with torch.no_grad():
        embeddings = network(x)
    expected = {f"test/{name}": value for name, value in Evaluator()(embeddings, y).items()}
    assert learner.test_metrics == pytest.approx(expected)
    assert torch.allclose(torch.cat(trainer.predict(learner, data)), embeddings)


def test_batches_without_indices_are_refused_on_several_processes(monkeypatch):
    monkeypatch.setattr("dml.engine.module.processes", lambda: (0, 2))
    learner = MetricLearner(embedder=nn.Linear(2, 2), loss=NRALoss(), evaluator=Evaluator(), optimizer=torch.optim.SGD)
    with pytest.raises(ValueError, match=r"needs batches of \(images, labels, indices\)"):
        learner.validation_step((torch.zeros(2, 2), torch.tensor([0, 1])), 0)


def test_losses_show_their_arguments_and_keep_their_signatures():
    assert repr(NRALoss(alpha=2)) == "NRALoss(alpha=2, epsilon=0.0001, detach_range=False)"
    assert repr(TripletLoss(mining="hard")) == "TripletLoss(margin=1.0, mining='hard')"
    assert inspect.isfunction(NRALoss.forward)


def test_a_third_argument_is_taken_if_it_is_none_and_refused_by_name():
    x, y = torch.eye(4), [0, 0, 1, 1]
    assert torch.equal(NRALoss()(x, y, None), NRALoss()(x, torch.tensor(y)))
    with pytest.raises(ValueError, match=r"NRALoss takes no pairs or triplets of a miner \(indices_tuple\)"):
        NRALoss()(x, y, (torch.tensor([0]), torch.tensor([1]), torch.tensor([2])))
