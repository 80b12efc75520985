"""Runs of train.py and evaluate.py in this process, in a few steps, on the digits: their network takes no time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from PIL import Image

from dml.app.checkpoint import offer_trained_config
from dml.app.evaluation import run_evaluate
from dml.app.run import run_train

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("progress_bar=false", "trainer.accelerator=cpu")
DIGITS = "experiment=digits"
TRAIN = (*QUIET, DIGITS, "logger=none", "trainer.max_steps=3")


@dataclass
class Run:
    """A finished run."""

    folder: Path
    metrics: dict[str, float]

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        return torch.load(self.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def composed(name: str, *overrides: str, folder: Path | None = None, hydra: bool = False) -> DictConfig:
    """The config that hydra.main hands to train.py or evaluate.py (`hydra`: to a callback); its folder is `folder`.

    Training is that of the digits where the overrides name no experiment.
    """
    if name == "train" and not any(one.startswith("experiment=") for one in overrides):
        overrides = (DIGITS, *overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(name, overrides=list(overrides), return_hydra_config=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg.copy())
    if not hydra:
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg


def train(folder: Path, *overrides: str, run: Callable[[DictConfig], Any] = run_train) -> Run:
    return Run(folder, run(composed("train", *TRAIN, *overrides, folder=folder)))


def evaluate(folder: Path, checkpoint: Path, *overrides: str, beside: Sequence[Path] = ()) -> Run:
    offer_trained_config(checkpoint, "trust=true" in overrides)
    given = f"[{','.join(repr(str(path)) for path in (checkpoint, *beside))}]" if beside else f"'{checkpoint}'"
    overrides = (*QUIET, f"ckpt_path={given}", *overrides)
    return Run(folder, run_evaluate(composed("evaluate", *overrides, folder=folder)))


def write_images(root: Path, classes: int, images: int) -> Path:
    """A tree of class folders of small noisy PNGs, every class around a gray of its own."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(images):
            pixels = np.clip(rng.normal(40 * c % 230 + 20, 10, (12, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{c}" / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def no_hydra_of_another_test() -> Iterator[None]:
    """What a test hands to Hydra is not seen by the next one."""
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A validated run of 12 steps whose best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("finished")
    steps = ("trainer.max_steps=12", "trainer.val_check_interval=5", "trainer.log_every_n_steps=1")
    return train(folder, *steps, "seed=0")
