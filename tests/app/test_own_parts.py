"""Parts outside of the repository, from --config-dir to the evaluation; and what is said where one lacks something."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from dml.app.one_batch import batches_of_an_epoch
from dml.samplers.groups import GroupSampler
from tests.app.conftest import DIGITS, QUIET, ROOT, train

PARTS = '''
import numpy as np
import torch
from torch import nn

from dml.data.dataset import Records, Source


class Margin(nn.Module):
    min_samples_per_class = 2

    def __init__(self, *, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings, labels):
        distances, same = torch.cdist(embeddings, embeddings), labels[:, None] == labels
        return distances[same].mean() + (self.margin - distances[~same]).relu().mean()


class Shuffled:
    """Batches of one size, whatever their classes."""

    def __init__(self, *, size: int, labels, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.images, self.size, self.seed, self.rank, self.world_size = len(labels), size, seed, rank, world_size
        self.epoch = self.position = 0

    def __len__(self):
        return self.images // self.size

    def set_epoch(self, epoch):
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        for i in range(self.position, len(self)):
            self.position = i + 1
            yield np.array_split(order[i * self.size : (i + 1) * self.size], self.world_size)[self.rank].tolist()
        self.position = 0

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


class Grid(nn.Module):
    head_hidden_size = 48
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(48))

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) * self.scale


def stripes(*, classes: int = 12) -> Source:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(classes), 8)
    images = rng.integers(0, 60, (len(labels), 28, 28, 3)).astype(np.uint8)
    for image, c in zip(images, labels):
        image[:, :: c + 2] += np.uint8(100)
    half, names = classes // 2, tuple(f"stripes{c}" for c in range(classes))
    first = labels < half
    train = Records(images=images[first], labels=labels[first], class_names=names[:half])
    test = Records(images=images[~first], labels=labels[~first] - half, class_names=names[half:])
    return Source(name="stripes", train=train, test=test)
'''
CONTRACTS = """
from dml.testing.contracts import BackboneContract, LossContract, SamplerContract, SourceContract
from mine.parts import Grid, Margin, Shuffled, stripes


class TestLoss(LossContract):
    build = staticmethod(Margin)


class TestSampler(SamplerContract):
    def build(self, **given):
        return Shuffled(size=12, **given)


class TestBackbone(BackboneContract):
    build = staticmethod(Grid)


class TestSource(SourceContract):
    build = staticmethod(stripes)
"""
YAMLS = {
    "loss/my_margin": "_target_: mine.parts.Margin\nmargin: 0.5\n",
    "sampler/my_order": "_target_: mine.parts.Shuffled\nsize: 12\n",
    "backbone/grid": "_target_: mine.parts.Grid\n",
    "data/stripes": "_target_: mine.parts.stripes\nclasses: 12\nval_fraction: 0.4\n",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine").mkdir()
    (folder / "mine" / "parts.py").write_text(PARTS)
    (folder / "test_mine.py").write_text(CONTRACTS)
    for name, text in YAMLS.items():
        file = folder / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def run(project, *command, cwd=ROOT):
    paths = {"PYTHONPATH": f"{project}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env={**os.environ, **paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_parts_outside_of_the_repository_train_and_are_evaluated(project, tmp_path):
    chosen = (
        "data=stripes",
        "loss=my_margin",
        "sampler=my_order",
        "backbone=grid",
        "trainer.max_steps=4",
        "logger=none",
    )
    trained = tmp_path / "run"
    run(project, "train.py", "--config-dir", project / "conf", *QUIET, DIGITS, *chosen, f"hydra.run.dir={trained}")
    found = json.loads((trained / "metrics.json").read_text())
    assert found["row"]["data"] == "stripes" and found["row"]["backbone"] == "mine.parts.Grid"
    best = trained / "checkpoints" / "best.ckpt"
    run(project, "evaluate.py", *QUIET, f"ckpt_path={best}", "trust=true", f"hydra.run.dir={tmp_path / 'again'}")
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    tested = {key: value for key, value in found["metrics"].items() if key.startswith("test/")}
    assert again["metrics"] == pytest.approx(tested)


def test_contracts_can_be_inherited_outside(project):
    # It ends with status 5 where no test is found.
    run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", project / "test_mine.py", cwd=project)


class NoState(GroupSampler):
    state_dict = property()


class Tensors(GroupSampler):
    def __iter__(self):
        return (np.asarray(batch) for batch in super().__iter__())


class TooHigh(GroupSampler):
    def __iter__(self):
        return ([index + 10_000 for index in batch] for batch in super().__iter__())


class NeverCounts(GroupSampler):
    def __iter__(self):
        yield from list(super().__iter__())


class NoBatch(GroupSampler):
    def __len__(self):
        return 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (NoState, "NoState has no state_dict"),
        (Tensors, "Tensors gives array"),
        (TooHigh, "where a list of indices from 0 to 39 is needed"),
        (NeverCounts, "NeverCounts.position is 0 after the first batch"),
        (NoBatch, "NoBatch has no batch in an epoch of 40 images"),
    ],
)
def test_a_sampler_hears_what_it_lacks(kind, said):
    cfg = {"_target_": f"{kind.__module__}.{kind.__name__}", "classes_per_batch": 2, "samples_per_class": 3}
    with pytest.raises(ValueError, match=f"^sampler: .*{said}"):
        batches_of_an_epoch(OmegaConf.create({"sampler": cfg, "seed": 0}), np.repeat(np.arange(8), 5))


def test_batches_are_counted_by_the_sampler():
    cfg = {"_target_": "dml.samplers.groups.GroupSampler", "classes_per_batch": 2, "samples_per_class": 3}
    assert batches_of_an_epoch(OmegaConf.create({"sampler": cfg, "seed": 0}), np.repeat(np.arange(8), 5)) == 6


def none() -> dict:
    return {}


def test_data_that_is_no_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data: tests\.app\.test_own_parts\.none must return a .*Source, not \{\}"):
        train(tmp_path, f"data._target_={__name__}.none")
