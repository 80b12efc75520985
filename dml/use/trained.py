"""A trained model, read from its checkpoint: image -> pixels -> embedding, as the run's own test made them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dml.app.build import make_embedder, make_learner
from dml.app.checkpoint import read_to_evaluate
from dml.app.checks import check_config
from dml.app.make import make
from dml.app.paths import checkpoint_in
from dml.app.settings import Model
from dml.data.decode import Box
from dml.engine.module import MetricLearner
from dml.models.lora import merge_lora
from dml.retrieval.evaluator import normalized

ImageLike = str | Path | np.ndarray


class Trained:
    """The network of a checkpoint with the reading of images that belongs to it, in evaluation mode.

    Args:
        path: of the checkpoint.
        checkpoint: as `read_to_evaluate` gives it.

    Attributes:
        config: the run's, as its checkpoint carries it: plain data.
        learner: the Lightning module, with loss and evaluator.
        embedder: its network alone, which gives columns if it is one in groups (models/groups.py).
        transforms: decode and test transform.
        dim: D.
        normalized: whether the run compares embeddings of length 1 (`evaluator.normalize`), as `__call__` then gives.
        fingerprint: of all that decides an embedding: weights, network, transform. Equal ones can be compared.

    Raises:
        ValueError: the checkpoint's config or weights do not fit each other.
    """

    def __init__(self, path: Path, checkpoint: dict[str, Any]) -> None:
        self.path, self.config = path, checkpoint["dml_config"]
        cfg = OmegaConf.create(self.config)
        assert isinstance(cfg, DictConfig)
        check_config(cfg, Model)
        self.learner: MetricLearner = make_learner(cfg, make_embedder(cfg, from_checkpoint=True), self.config)
        try:
            self.learner.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise ValueError(f"{path} holds another model than its config: {str(error).splitlines()[0]}") from error
        merge_lora(self.learner.embedder)
        self.learner.eval()
        self.embedder = self.learner.embedder
        self.transforms = make(cfg.transform)
        self.normalized = bool(self.config["evaluator"].get("normalize"))
        self.device = torch.device("cpu")
        self.dim = int(self(torch.stack([self.read(np.zeros((8, 8, 3), dtype=np.uint8))])).shape[1])
        self.fingerprint = self._fingerprint()

    def to(self, device: str | torch.device) -> "Trained":
        """Move the network to a device; returns the same object."""
        self.device = torch.device(device)
        self.learner.to(self.device)
        return self

    def read(self, image: ImageLike, box: Box | None = None) -> Tensor:
        """The pixels of an image as a test of the run reads them: uint8 [3, H, W] or, of ten crops, [10, 3, H, W].

        box: what it is cut to first.

        Raises:
            ValueError: it cannot be read; names it.
        """
        pixels = self.transforms.decode(Path(image) if isinstance(image, str) else image, box)
        return self.transforms.test(pixels)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Pixels uint8 [B, 3, H, W] or [B, crops, 3, H, W] -> embeddings float32 [B, D] as the run compares them."""
        embeddings = self.learner(images.to(self.device, non_blocking=True)).float()
        return normalized(embeddings) if self.normalized else embeddings

    def embed(
        self, images: Iterable[ImageLike], batch_size: int = 64, boxes: Iterable[Box | None] | None = None
    ) -> Tensor:
        """Embeddings [N, D], on the CPU, of files or arrays uint8 [h, w, 3] or [h, w], cut to boxes if these are given.

        Raises:
            ValueError: an image cannot be read; names it.
        """
        found, batch = [torch.empty(0, self.dim)], []
        for image, box in zip(images, boxes or repeat(None)):  # noqa: B905  # endless
            batch.append(self.read(image, box))
            if len(batch) == batch_size:
                found.append(self(torch.stack(batch)).cpu())
                batch = []
        return torch.cat([*found, self(torch.stack(batch)).cpu()] if batch else found)

    def _fingerprint(self) -> str:
        groups = [self.config.get(group) for group in ("backbone", "embedder", "transform")]
        digest = hashlib.sha256(json.dumps([groups, self.normalized], sort_keys=True, default=str).encode())
        for name, tensor in self.embedder.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def load(path: str | Path, *, trust: bool = False) -> Trained:
    """The model of a finished run; see `dml.load`."""
    path = Path(path).expanduser()
    if path.is_dir() and not any((folder / "metrics.json").is_file() for folder in (path, path.parent)):
        checkpoint = checkpoint_in(path, "path")  # a folder without any says so first
        raise ValueError(
            f"path={path} is a run that is not finished (it has no metrics.json): resume it, or name its checkpoint "
            f"itself, {checkpoint}"
        )
    path = checkpoint_in(path, "path")
    return Trained(path, read_to_evaluate(path, trust, key="path"))


def same_model(fingerprint: str, dim: int, model: Trained, what: Sequence[str]) -> None:
    """Refuse embeddings of another model.

    Raises:
        ValueError: they are; the first of `what` names them, the second says what to do.
    """
    if dim != model.dim:
        raise ValueError(f"{what[0]} has {dim} dimensions, {model.path} gives {model.dim}: {what[1]}")
    if fingerprint != model.fingerprint:
        raise ValueError(
            f"{what[0]} is of another model ({fingerprint}) than {model.path} ({model.fingerprint}): {what[1]}"
        )
