"""One tiny run that all tests of dml/use share: a network of timm's in two dimensions, on files of several kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from PIL import Image

import dml
from dml.use.command import main
from tests.app.conftest import Run, train, write_images

SETTINGS = (
    *("experiment=folder", "model=convnet", "backbone.name=test_resnet", "backbone.pretrained=false"),
    *("transform=paper", "transform.size=32", "transform.resize=36", "transform.flip=false"),
    *("batch.classes_per_batch=2", "batch.samples_per_class=3", "data.val_fraction=0.5", "loader.workers=0"),
    *("evaluator.ks=[1]", "evaluator.metrics=[recall]", "protocol.monitor=val/recall@1", "embedder.dim=2"),
)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight class folders, of which the last four test: a transparent image and one of 16 bits among them."""
    root = write_images(tmp_path_factory.mktemp("use") / "tree", classes=8, images=5)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)).save(root / "class6" / "transparent.png")
    Image.fromarray(rng.integers(0, 2**16, (30, 20), dtype=np.uint16)).save(root / "class7" / "deep.png")
    return root


@pytest.fixture(scope="session")
def finished(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three steps."""
    run = train(tmp_path_factory.mktemp("use") / "run", *SETTINGS, f"data.root={tree}")
    HydraConfig.instance().cfg = None
    return run


@pytest.fixture(scope="session")
def model(finished: Run) -> "dml.use.trained.Trained":
    return dml.load(finished.folder)


@pytest.fixture(scope="session")
def embedded(finished: Run, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All images of the tree, embedded on the command line."""
    out = tmp_path_factory.mktemp("use") / "embeddings.npz"
    run("embed", finished.folder, tree, "--out", out)
    return out


def run(*arguments: object) -> None:
    """A command of `dml`, in this process."""
    main([*map(str, arguments)])


def refused(*arguments: object) -> str:
    """What a command says that ends with a line on standard error."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    said = str(error.value)
    assert "\n" not in said and "Traceback" not in said
    return said


def copy_of_run(finished: Run, folder: Path) -> Path:
    """The run's checkpoint with other weights, in a run folder of its own."""
    checkpoint = finished.checkpoint("best")
    checkpoint["state_dict"]["embedder.head.bias"] += 1
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    (folder / "metrics.json").write_bytes((finished.folder / "metrics.json").read_bytes())
    return folder
