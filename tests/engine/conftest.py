"""A learner of small parts that show what the engine does with them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dml.data.dataset import ImageDataset, Records
from dml.data.transforms import Transforms
from dml.engine.datamodule import RetrievalData
from dml.engine.module import MetricLearner
from dml.samplers.groups import GroupSampler


class TinyEmbedder(nn.Module):
    """Images [B, 3, 8, 8] -> embeddings [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 2)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1).float() / 255) * self.frozen


class OwnWeights(nn.Module):
    """A loss with a weight of its own; `values` replaces what it says at the given calls."""

    def __init__(self, values: dict[int, float] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.values, self.calls = values or {}, 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        loss = (embeddings * self.weight - labels[:, None]).square().mean()
        return loss * self.values.get(self.calls - 1, 1.0)


class Scores:
    """An evaluator that remembers what it was given and answers with the scores in turn."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.calls = list(scores), []

    def __call__(self, embeddings: Tensor, labels: Tensor, **gallery: Any) -> dict[str, float]:
        self.calls.append((embeddings, labels, gallery))
        return {"recall@1": self.scores.pop(0) if self.scores else 0.5}


def records(images: int, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    return Records(pixels, np.arange(images) % 4, tuple("abcd"))


def make_data(
    *,
    workers: int = 0,
    gallery: bool = False,
    validate: bool = True,
    seed: int = 5,
    light: bool = False,
    sampler: Callable[..., Any] = GroupSampler,
    **given: Any,
) -> RetrievalData:
    """40 training images in batches of 2 x 4 (5 an epoch), 11 to validate, 9 to test, 6 in the gallery.

    light: training images are only cropped and mirrored, not turned.
    """
    changes: dict[str, Any] = {"resize": 12} if light else {"resize": 8, "train_crop": "center", "degrees": 30}
    transforms = Transforms(size=8, resize_side="both", **changes, translate=0 if light else 0.2)
    train, test = transforms.train, transforms.test
    return RetrievalData(
        train=ImageDataset(records(40), train),
        validation=ImageDataset(records(11, 1), test) if validate else None,
        test=ImageDataset(records(9, 2), test),
        gallery=ImageDataset(records(6, 3), test) if gallery else None,
        labels=records(40).labels,
        plain_train=ImageDataset(records(40), test),
        sampler=lambda **given: sampler(classes_per_batch=2, samples_per_class=4, **given),
        seed=seed,
        eval_batch_size=4,
        workers=workers,
        **given,
    )


def make_learner(**given: Any) -> MetricLearner:
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "embedder": TinyEmbedder(),
        "loss": OwnWeights(),
        "evaluator": Scores(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        "scheduler": None,
        "config": {"seed": 5, "loss": {"margin": 1.0}},
    }
    return MetricLearner(**{**parts, **given})


def make_trainer(folder: Any, steps: int, *callbacks: pl.Callback, **given: Any) -> pl.Trainer:
    """As conf/trainer/default.yaml, on the CPU."""
    return pl.Trainer(
        devices=1,
        max_steps=steps,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=list(callbacks),
        **{
            **{"accelerator": "cpu", "max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 2},
            **{"num_sanity_val_steps": 0, "logger": False, "enable_progress_bar": False, **given},
        },
    )


def attach(data: RetrievalData, *, rank: int = 0, world_size: int = 1, processed: int = 0, epoch: int = 0) -> None:
    """Stand in for the trainer of a data module."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=processed))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=world_size,
        current_epoch=epoch,
        lightning_module=SimpleNamespace(loss=nn.Module()),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )


class AtStep(pl.Callback):
    """Calls `act` after every training step."""

    def __init__(self, act: Callable[[pl.Trainer, pl.LightningModule], None]) -> None:
        self.act = act

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.act(trainer, pl_module)
