"""Config -> objects. Data first; it fills in what the rest depends on."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf, open_dict

from dml.app.checks import check_data
from dml.app.make import make
from dml.app.settings import LATER, Splitting
from dml.data.cache import cache_images
from dml.data.dataset import ImageDataset, Records, Source
from dml.data.decode import Decode
from dml.engine.callbacks import make_callbacks
from dml.engine.datamodule import RetrievalData, cores
from dml.engine.module import MetricLearner
from dml.engine.progress import StepProgressBar

# Keys of the data group that say how its training part is split and where decoded images are kept; the others go to the
# source's own function.
OUR_KEYS = tuple(field.name for field in fields(Splitting))


@dataclass
class Built:
    """What a run needs."""

    source: Source
    data: RetrievalData
    model: MetricLearner


def build_source(cfg: DictConfig, *, validate: bool) -> tuple[Source, Records | None]:
    """The source with the training records that validation leaves it, and the validation records."""
    settings = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(settings, dict)
    split = {key: settings.pop(key) for key in OUR_KEYS if key in settings}
    source = make(settings)
    if not validate:
        return source, None
    return source.hold_out(split.get("val_fraction", 0.2), split.get("fold"), split.get("folds", 5))


def fill_in(cfg: DictConfig, source: Source) -> None:
    """Put into the loss's config what only data and embedder know; what the user set stays."""
    with open_dict(cfg):
        for key, value in zip(LATER, (source.train.num_classes, cfg.embedder.dim), strict=True):
            if key in cfg.loss and cfg.loss[key] is None:
                cfg.loss[key] = value


def build(cfg: DictConfig, *, for_evaluation: bool = False) -> Built:
    """Build data and model.

    Args:
        cfg: composed config that `check_config` has passed; num_classes and embedding_dim of the loss are filled in,
            the only change made to it.
        for_evaluation: weights come from a checkpoint, and the training set may be another one: no downloads, and no
            checks of what only training needs.

    Raises:
        ValueError: the config does not go with the data, or a part with the machine; names the key.
    """
    source, validation = build_source(cfg, validate=cfg.protocol.validate and not for_evaluation)
    if not for_evaluation:
        fill_in(cfg, source)
        check_data(cfg, source, validation)
    transforms = make(cfg.transform)
    if cfg.protocol.watch_test:
        validation = source.test

    def dataset(records: Records | None, train: bool = False) -> ImageDataset | None:
        if records is None:
            return None
        transform = transforms.train if train else transforms.test
        return ImageDataset(records, transform, decode=transforms.decode, crop_to_box=transforms.crop_to_box)

    parts = {
        "train": dataset(source.train, train=True),
        "validation": dataset(validation),
        "test": dataset(source.test),
        "gallery": dataset(source.gallery),
    }
    cached = _cache(cfg, source.name, [part for part in parts.values() if part is not None], transforms.decode)
    data = RetrievalData(
        **parts,
        labels=source.train.labels,
        sampler=make({**cfg.sampler, "_partial_": True}),
        seed=cfg.seed,
        eval_batch_size=cfg.loader.eval_batch_size,
        workers=_workers(cfg, source.train, cached),
    )
    no_weights = {"pretrained": False, "checkpoint_path": None} if for_evaluation else {}
    backbone = make(cfg.backbone, **{key: value for key, value in no_weights.items() if key in cfg.backbone})
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    model = MetricLearner(
        embedder=make(cfg.embedder, backbone=backbone),
        loss=make(cfg.loss),
        evaluator=make(cfg.evaluator),
        optimizer=make({**cfg.optimizer, "_partial_": True}),
        scheduler=make({**cfg.scheduler, "_partial_": True}) if cfg.scheduler else None,
        config={str(key): value for key, value in config.items()},
        watch_test=cfg.protocol.watch_test,
        **({} if for_evaluation else make(cfg.engine)),
    )
    return Built(source, data, model)


def _cache(cfg: DictConfig, name: str, datasets: list[ImageDataset], decode: Decode) -> bool:
    """Put a cache before the data sets if the config wants one; returns whether it does."""
    place = cfg.data.get("cache", "none")
    if place == "none":
        return False
    workers = cores() if cfg.loader.workers is None else cfg.loader.workers
    folder = cfg.data.get("cache_dir", "data/cache")
    cache_images(datasets, decode, place=place, folder=folder, name=name, workers=workers, progress=cfg.progress_bar)
    return True


def _workers(cfg: DictConfig, train: Records, cached: bool) -> int:
    """Loader processes: what the user wants, else none for images in memory, few for cached ones, or all cores."""
    if cfg.loader.workers is not None:
        return cfg.loader.workers
    return 0 if isinstance(train.images, np.ndarray) else min(2 if cached else 8, cores())


def build_trainer(cfg: DictConfig, folder: str, *, for_evaluation: bool = False) -> pl.Trainer:
    """The Lightning trainer with its logger and callbacks, writing into `folder`."""
    logger: Any = False
    callbacks: list[pl.Callback] = []
    if not for_evaluation:
        logger = make(cfg.logger, save_dir=folder) if cfg.logger else False
        callbacks += make_callbacks(
            folder=f"{folder}/checkpoints",
            monitor=cfg.protocol.monitor if cfg.protocol.validate else None,
            patience=cfg.protocol.patience,
            minutes=cfg.checkpoint_minutes,
        )
    if cfg.progress_bar:
        callbacks.append(StepProgressBar())
    return make(
        cfg.trainer,
        # A run shorter than the interval is validated at its end: best.ckpt is always there.
        val_check_interval=min(cfg.trainer.val_check_interval, cfg.trainer.max_steps),
        logger=logger,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=cfg.progress_bar,
    )
