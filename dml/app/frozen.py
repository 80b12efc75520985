"""Training on the features of a frozen backbone: computed once an image, and kept for all runs that share them."""

import copy
import hashlib
import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dml.app.build import Built
from dml.app.checkpoint import read_checkpoint
from dml.app.code import code_version
from dml.data.cache import COLUMNS, alone
from dml.data.dataset import ImageDataset
from dml.data.own_folders import make_tagged
from dml.data.trained_on import fingerprints
from dml.models.embedder import Embedder
from dml.whole_file import whole_file
from dml.words import counted

log = logging.getLogger(__name__)

_GROUPS = ("backbone", "embedder", "transform")  # what decides features, beside weights and images
_HEAD = frozenset({"dim", "head", "normalize", "checkpoint_path", "pretrained"})  # of these groups, what does not
_HEAD |= {"sizes", "weights", "detached", "unit_weights"}  # of embedder=groups


class FeatureDataset(Dataset[tuple[Tensor, int, int]]):
    """(features [C] or [crops, C], label, index) of each image of a data set; an index may come with a seed.

    Args:
        images: the data set.
        features: [N, C] or [N, crops, C], float32.
    """

    def __init__(self, images: ImageDataset, features: np.ndarray) -> None:
        assert len(features) == len(images), (len(features), len(images))
        self.records, self.looks, self.features = images.records, images.looks, features

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: Any) -> tuple[Tensor, int, int]:
        """The features of an image, its label and its index."""
        index = item[0] if isinstance(item, tuple) else item
        return torch.from_numpy(self.features[index].copy()), int(self.records.labels[index]), index


def read_features_if_frozen(cfg: DictConfig, built: Built, trainer: pl.Trainer, resumed: Path | None) -> None:
    """Have a run whose backbone is frozen read its features in the place of images, in the test transform.

    Features are in files of data.cache_dir, [N, C] float32 of each part, and are found again by all that decides them:
    the weights, the images' contents, backbone and transform, our code and the versions of what computes. Files are
    mapped, and a batch at a time is computed, so memory does not depend on the number of images.

    Args:
        cfg: of the run.
        built: whose data is changed.
        trainer: whose device and precision compute.
        resumed: a checkpoint that the weights come from; None: the model has them.

    Raises:
        ValueError: training images have several crops, or an image cannot be read.
        OSError: a file cannot be written.
    """
    embedder = built.model.embedder
    if not (isinstance(embedder, Embedder) and embedder.freeze == "backbone"):
        return
    if resumed is not None:
        built.model.load_state_dict(read_checkpoint(resumed, "resume")["state_dict"])
    folder = Path(str(cfg.data.get("cache_dir", "data/cache"))).expanduser()
    make_tagged(folder)
    decided = _decided(built.model.config, embedder, trainer)
    parts = built.data.parts
    rank_zero_only(log.info)(
        f"The backbone is frozen: batches are features of {counted(sum(map(len, parts.values())), 'image')} in the "
        f"test transform, without augmentation ({folder})"
    )
    found = {}
    for name, part in parts.items():
        images = copy.copy(part)
        images.transform = parts["test"].transform
        content = [fingerprints(images.records.images)] + ([images.records.boxes] if images.crop_to_box else [])
        digest = hashlib.sha256(decided + b"".join(np.ascontiguousarray(one).tobytes() for one in content))
        file = folder / f"{built.source.name[:50]}-{digest.hexdigest()[:16]}.features.npy"
        if not file.exists():
            with alone(folder):
                if not file.exists():  # or another process has written it
                    batches = _computed(embedder, built.data.read_once(images), trainer)
                    _write(file, batches, len(images), name, cfg)
        found[name] = FeatureDataset(images, np.load(file, mmap_mode="r"))
    if found["training"].features.ndim != 2:
        raise ValueError("transform: embedder.freeze=backbone needs one test crop an image, and there are several")
    built.data.read_features(found)


def _decided(config: dict[str, Any], embedder: Embedder, trainer: pl.Trainer) -> bytes:
    """A fingerprint of all that decides features beside the images."""
    groups = {group: {k: v for k, v in config[group].items() if k not in _HEAD} for group in _GROUPS}
    versions = [version(name) for name in ("torch", "torchvision", "timm", "pillow")]
    where = [str(trainer.precision), trainer.strategy.root_device.type]
    code = code_version({group: config[group] for group in _GROUPS})
    digest = hashlib.sha256(json.dumps([groups, versions, where, code], default=str).encode())
    for name, value in embedder.state_dict().items():
        if not name.startswith("head."):
            digest.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


@torch.no_grad()
def _computed(embedder: Embedder, loader: DataLoader, trainer: pl.Trainer) -> Iterator[np.ndarray]:
    """Features of the images in order, a batch at a time."""
    device = trainer.strategy.root_device
    embedder.to(device).eval()
    for pixels, *_ in loader:
        with trainer.precision_plugin.forward_context():
            found = embedder.features(embedder.scaled(pixels.flatten(0, -4).to(device)))
        yield found.float().cpu().reshape(*pixels.shape[:-3], -1).numpy()
    embedder.train()


def _write(file: Path, batches: Iterator[np.ndarray], images: int, part: str, cfg: DictConfig) -> None:
    """Write [N, C] features as an array of numpy's, a batch at a time."""
    with whole_file(file) as out, Progress(*COLUMNS, disable=not cfg.progress_bar) as bar:
        task = bar.add_task(f"Features of {part} images", total=images)
        for batch in batches:
            if not out.tell():
                header = {"descr": "<f4", "fortran_order": False, "shape": (images, *batch.shape[1:])}
                np.lib.format.write_array_header_1_0(out, header)
            out.write(np.ascontiguousarray(batch, dtype="<f4").data)
            bar.advance(task, len(batch))
