"""Config -> objects. Data first; it fills in what the rest depends on."""

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from dml.app.checks import check_data, check_tested
from dml.app.keys import takes_steps
from dml.app.make import make
from dml.app.settings import Optimizing, Splitting, without
from dml.app.sizes import fill_in_sizes, groups_of
from dml.app.told import tell
from dml.data.broken import find_broken, leave_out
from dml.data.cache import cache_images
from dml.data.dataset import ImageDataset, Records, Source
from dml.data.decode import Decode
from dml.engine.datamodule import RetrievalData, cores
from dml.engine.module import MetricLearner
from dml.engine.rules import Rule
from dml.engine.schedule import steps_of_run
from dml.models.backbones import layer_scales
from dml.models.packaged import packaged_file
from dml.models.weights import fingerprint
from dml.words import counted

_log = logging.getLogger(__name__)

# Keys of the data group that say how its training part is split and read; the others go to the
# source's own function.
OUR_KEYS = tuple(field.name for field in fields(Splitting))


@dataclass
class Built:
    """What a run needs.

    Attributes:
        validation: records of the validation part, which is no longer in the source.
        broken: the images that were left out (data.on_error=skip), each with its reason.
    """

    source: Source
    data: RetrievalData
    model: MetricLearner
    broken: dict[Path, str] = field(default_factory=dict)
    validation: Records | None = None


def build_source(cfg: DictConfig, *, validate: bool) -> tuple[Source, Records | None]:
    """The source with the training records that validation leaves it, and the validation records."""
    settings = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(settings, dict)
    split = {key: settings.pop(key) for key in OUR_KEYS if key in settings}
    source = make(settings)
    if not isinstance(source, Source):
        raise ValueError(f"data: {settings['_target_']} must return a dml.data.dataset.Source, not {source!r:.60}")
    if not validate:
        return source, None
    return source.hold_out(split.get("val_fraction", 0.2), split.get("fold"), split.get("folds", 5))


def fill_in(cfg: DictConfig, source: Source, embedder: Any) -> None:
    """Put into the configs of loss and schedule what only data and embedder know; what the user set stays."""
    with open_dict(cfg):
        fill_in_sizes(cfg.loss, groups_of(embedder, cfg.embedder.get("dim")), source.train.num_classes)
        for key in takes_steps(cfg):
            cfg.scheduler[key] = _steps(cfg, source)


def _steps(cfg: DictConfig, source: Source) -> int | None:
    """Those that the run makes, if nothing ends it early."""
    sampler = make({**cfg.sampler, "_partial_": True})(labels=source.train.labels, seed=cfg.seed, rank=0, world_size=1)
    batches, limit = len(sampler), cfg.trainer.get("limit_train_batches")
    if limit is not None:  # as Lightning counts
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = steps_of_run(
        batches,
        max_steps=cfg.trainer.max_steps,
        max_epochs=cfg.trainer.get("max_epochs"),
        accumulated=cfg.trainer.get("accumulate_grad_batches", 1),
    )
    if cfg.trainer.get("max_time") is not None:
        rank_zero_only(_log.warning)(
            f"trainer.max_time={cfg.trainer.max_time} may end the run before the {steps} steps of the schedule, which "
            "cannot know how many there will be: the learning rate would stop halfway"
        )
    return steps


def read_parts(cfg: DictConfig) -> tuple[Source, Records | None]:
    """What a run of this config reads: the source, and the validation part that its training records are without.

    Raises:
        ValueError: the data cannot be read; names the key.
    """
    return _without_broken(cfg, *build_source(cfg, validate=cfg.protocol.validate))[:2]


def build(cfg: DictConfig, *, for_evaluation: bool = False, resumed: bool = False, zero_shot: bool = False) -> Built:
    """Build data and model.

    Args:
        cfg: composed config that `check_config` has passed; the sizes of the loss and the steps of the schedule are
            filled in, the only change made to it.
        for_evaluation: weights come from a checkpoint, and the training set may be another one: no downloads, and no
            checks of what only training needs.
        resumed: weights come from a checkpoint.
        zero_shot: an evaluation without a checkpoint: weights are the pretrained ones.

    Raises:
        ValueError: the config does not go with the data, or a part with the machine; names the key.
    """
    source, validation = build_source(cfg, validate=cfg.protocol.validate and not for_evaluation)
    if source.validation is not None and not for_evaluation:
        rank_zero_only(_log.warning)(
            f"protocol={cfg.protocol.name} has no validation: {counted(len(source.validation), 'image')} that the data "
            "names for it will not be used"
        )
    # After the split: it is that of all images, so none changes sides when another is broken, or mended.
    source, validation, broken = _without_broken(cfg, source, validation)
    tell(source, validation, tested_only=for_evaluation)  # before anything is refused, or cached
    if for_evaluation:
        check_tested(cfg, source)
    else:
        check_data(cfg, source, validation)
    transforms = make(cfg.transform)
    watched = source.test if cfg.protocol.watch_test else validation

    def dataset(records: Records | None, train: bool = False) -> ImageDataset | None:
        if records is None:
            return None
        transform = transforms.train if train else transforms.test
        return ImageDataset(records, transform, decode=transforms.decode, crop_to_box=transforms.crop_to_box)

    parts = {
        "train": dataset(source.train, train=True),
        "validation": dataset(watched),
        "test": dataset(source.test),
        "gallery": dataset(source.gallery),
        "plain_train": None if for_evaluation else dataset(source.train),
    }
    cached = _cache(cfg, source.name, [part for part in parts.values() if part is not None], transforms.decode)
    light = cached and not transforms.draws_globally
    data = RetrievalData(
        **parts,
        labels=source.train.labels,
        sampler=make({**cfg.sampler, "_partial_": True}),
        seed=cfg.seed,
        eval_batch_size=cfg.loader.eval_batch_size,
        workers=_workers(cfg, source.train, light),
        reads_ahead=light,
        own_index=source.own_index,
    )
    from_checkpoint = resumed or (for_evaluation and not zero_shot)
    embedder = make_embedder(cfg, from_checkpoint=from_checkpoint)
    if not for_evaluation:
        fill_in(cfg, source, embedder)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    file = cfg.embedder.get("checkpoint_path") or cfg.backbone.get("checkpoint_path")
    if not file and cfg.backbone.get("pretrained"):
        file = packaged_file(str(cfg.backbone.get("name")))
    if file and not from_checkpoint:  # whose config carries it from then
        config["weights_sha256"] = fingerprint(file)
    model = make_learner(cfg, embedder, config, **({} if for_evaluation else _engine(cfg)))
    return Built(source, data, model, broken, validation)


def _engine(cfg: DictConfig) -> dict[str, Any]:
    """What the learner takes of the group; an average of the weights is the trainer's."""
    return {str(key): value for key, value in make(cfg.engine).items() if key != "ema"}


def make_learner(cfg: DictConfig, embedder: nn.Module, config: dict[Any, Any], **engine: Any) -> MetricLearner:
    """The Lightning module of a config, in which nothing is left to be filled in.

    Args:
        cfg: composed config.
        embedder: of it.
        config: what checkpoints are to carry.
        engine: how a step is carried out.
    """
    return MetricLearner(
        embedder=embedder,
        loss=make(cfg.loss),
        evaluator=make(cfg.evaluator),
        optimizer=make({**without(cfg.optimizer, Optimizing), "_partial_": True}),
        scheduler=make({**cfg.scheduler, "_partial_": True}) if cfg.scheduler else None,
        config={str(key): value for key, value in config.items()},
        **_how_weights_learn(cfg, embedder),
        monitor=cfg.protocol.monitor,
        watch_test=cfg.protocol.watch_test,
        **engine,
    )


def make_embedder(cfg: DictConfig, *, from_checkpoint: bool) -> nn.Module:
    """Backbone and embedder; from_checkpoint: all weights will come from there, so none are fetched or read."""
    none, file = {"pretrained": False, "checkpoint_path": None}, cfg.embedder.get("checkpoint_path")
    no_weights = none if from_checkpoint or file else {}  # an embedder's file holds the backbone's as well
    backbone = make(cfg.backbone, **{key: value for key, value in no_weights.items() if key in cfg.backbone})
    return make(cfg.embedder, backbone=backbone, **({"checkpoint_path": None} if from_checkpoint and file else {}))


def _how_weights_learn(cfg: DictConfig, embedder: nn.Module) -> dict[str, Any]:
    """The rules of the optimizer group, and the factors that layer decay makes."""
    rules, decay = cfg.optimizer.get("groups") or [], cfg.optimizer.get("layer_decay")
    scales = layer_scales(embedder.get_submodule("backbone"), decay) if decay is not None else {}
    return {
        "rules": [Rule(**rule) for rule in rules],
        "layer_scales": {f"embedder.backbone.{name}": factor for name, factor in scales.items()},
    }


def _without_broken(
    cfg: DictConfig, source: Source, validation: Records | None
) -> tuple[Source, Records | None, dict[Path, str]]:
    """Source and validation part without the images that cannot be decoded, if the config says so; and those."""
    most = cfg.data.get("max_bad", 10)
    if cfg.data.get("on_error", "raise") == "raise":
        return source, validation, {}
    parts = [part for part in (source.train, validation, source.test, source.gallery) if part is not None]
    broken = find_broken(
        parts,
        folder=cfg.data.get("cache_dir", "data/cache"),
        name=source.name,
        workers=_decoders(cfg),
        progress=cfg.progress_bar,
        white=cfg.transform.get("white"),
    )
    if len(broken) > most:
        first = "; ".join(f"{image}: {reason}" for image, reason in list(broken.items())[:3])
        raise ValueError(
            f"{counted(len(broken), 'image')} cannot be decoded, more than data.max_bad={most}. Mend or remove "
            f"them, or set data.max_bad={len(broken)} to leave them out. The first: {first}"
        )
    return (*leave_out(source, validation, broken), broken) if broken else (source, validation, broken)


def _cache(cfg: DictConfig, name: str, datasets: list[ImageDataset], decode: Decode) -> bool:
    """Put a cache before the data sets if the config wants one; returns whether it does."""
    place = cfg.data.get("cache", "none")
    if place == "none":
        return False
    cache_images(
        datasets,
        decode,
        place=place,
        folder=cfg.data.get("cache_dir", "data/cache"),
        name=name,
        workers=_decoders(cfg),
        progress=cfg.progress_bar,
    )
    return True


def _decoders(cfg: DictConfig) -> int:
    """Processes that decode all images once, while nothing else is done."""
    return cores() if cfg.loader.workers is None else cfg.loader.workers


def _workers(cfg: DictConfig, train: Records, light: bool) -> int:
    """Loader processes: what the user wants, else none for images in memory or only to be copied, or all cores."""
    if cfg.loader.workers is not None:
        return cfg.loader.workers
    return 0 if light or isinstance(train.images, np.ndarray) else min(8, cores())
