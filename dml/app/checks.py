"""A config held against its schema, its parts, its groups against each other, and against the data; all at once.

`check_config` needs no data; `check_data` comes before any heavy work. Before both comes what dml.app.keys can tell
while torch is not loaded.
"""

import copy
import inspect
import logging
import pydoc
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.types import LRSchedulerTypeTuple

from dml.app.follow import follow_backbone
from dml.app.grouped import fewest_found, problems_of_groups
from dml.app.keys import measured, wrong_keys
from dml.app.make import make
from dml.app.network import network_problems
from dml.app.one_batch import batches_of_an_epoch
from dml.app.schema import fits, resolved, shown
from dml.app.settings import IMAGES, Optimizing, Training, loggers_of, without
from dml.app.sizes import fill_in_sizes, leaves_open, too_few_classes
from dml.data.dataset import Records, Source
from dml.data.splits import TWO_CLASSES
from dml.models.backbones import check_backbone, create_backbone
from dml.printable import printable
from dml.retrieval.codes import problem_of
from dml.words import counted

_log = logging.getLogger(__name__)


def check_config(cfg: DictConfig, schema: type = Training, *, begun: bool = False) -> None:
    """Refuse keys that do not exist, values of a wrong type or out of range, and groups that do not go together.

    Args:
        cfg: composed config; keys that are null because the backbone says them are filled in, and told.
        schema: what it is to be.
        begun: the weights come from a checkpoint, whatever the backbone's keys say.

    Raises:
        ValueError: one line a problem, each naming a config key.
    """
    config, broken, said = wrong_keys(cfg, schema, pydoc.locate)
    if issubclass(schema, Training):
        if not {"transform", "backbone"} & broken:
            config = _followed(cfg, {group: node for group, node in config.items() if group not in broken}) or config
        said += _tried(config, broken, begun)
    if said:
        raise ValueError("\n".join(map(printable, said)))


def _followed(cfg: DictConfig, sound: dict[str, Any]) -> dict[str, Any] | None:
    """The config with what the backbone says; None: it says nothing, or is no network that is known: told later."""
    backbone = sound["backbone"]
    if pydoc.locate(backbone["_target_"]) is create_backbone:
        try:
            check_backbone(backbone["name"], pretrained=False, checkpoint_path=None)
        except ValueError:
            return None
    if not (line := follow_backbone(cfg, sound)):
        return None
    rank_zero_only(_log.info)(line)
    return resolved(cfg)[0]


def _tried(config: dict[str, Any], broken: set[str], begun: bool) -> Iterator[str]:
    """What parts that need no data say when they are made: combinations that no signature tells, and parts without."""
    weights, optimizer, loss = [torch.nn.Parameter(torch.zeros(1))], None, None
    for group in ("transform", "evaluator", "loss", "optimizer", "scheduler"):
        if group in broken or not config[group] or (group == "scheduler" and optimizer is None):
            continue
        if group == "transform" and any(config[group].get(key, "") is None for key in IMAGES):
            continue  # the backbone, which would say them, is wrong itself
        given: dict[str, Any] = {}
        if group == "loss" and leaves_open(config["loss"], "groups"):
            loss = config["loss"]  # the network knows
            continue
        if group in ("optimizer", "scheduler"):
            given = {"params": weights} if group == "optimizer" else {"optimizer": optimizer}
        try:
            with nullcontext() if group == "optimizer" else torch.device("meta"):  # where sizes take no memory
                node = without(config[group], Optimizing) if group == "optimizer" else config[group]
                if group == "loss":
                    dim = None if "embedder" in broken else config["embedder"].get("dim")
                    fill_in_sizes(node := copy.deepcopy(node), (dim or 2,), 2)
                part = make({**node, "_partial_": True})(**given)
            if group == "loss":
                loss = config["loss"]
                if "sampler" not in broken:
                    yield from _members(part, config["sampler"].get("samples_per_class"))
            elif group == "optimizer":
                optimizer = part
                yield from _stepped(optimizer, config[group])
            elif group == "scheduler" and not isinstance(part, LRSchedulerTypeTuple):
                yield f"scheduler._target_={config[group]['_target_']} is no schedule of torch (an LRScheduler)"
        except Exception as error:
            if not (isinstance(error, ValueError) or config[group]["_target_"].startswith("torch.")):
                raise  # a bug of the part, not a mistake of who uses it
            said = _first_line(error)
            yield said if said.startswith(f"{group}.") else f"{group}: {said}"
    if "callbacks" not in broken:
        yield from _callbacks(config["callbacks"], None if {"protocol", "evaluator"} & broken else measured(config))
    if "logger" not in broken and config["logger"]:
        for logger in loggers_of(config["logger"]):
            yield from _installed(logger["_target_"])
            yield from _wandb(logger)
    if "backbone" not in broken and pydoc.locate(config["backbone"]["_target_"]) is create_backbone:
        backbone = config["backbone"]
        named = {} if begun else backbone
        try:
            check_backbone(backbone["name"], named.get("pretrained", False), named.get("checkpoint_path"))
        except ValueError as error:
            yield _first_line(error)
            return
    if not {"transform", "backbone", "embedder"} & broken:
        yield from network_problems(config, trained=begun, loss=loss, rules=optimizer is not None)


def _members(loss: Any, n: int | None) -> Iterator[str]:
    """Of a loss that, as it is set, needs more of a class in a batch than its class says."""
    needed, of_all = (getattr(each, "min_samples_per_class", 1) for each in (loss, type(loss)))
    if n is not None and of_all <= n < needed:
        yield f"sampler.samples_per_class={n} is too few: {type(loss).__name__} with these settings needs {needed}"


def _callbacks(config: dict[str, Any], names: list[str] | None) -> Iterator[str]:
    """Of the user's callbacks, which are no callbacks of the Lightning that we use, or refuse their arguments, or wait
    for a metric that is not among the names, while no callback of one's own could log it."""
    own = not all(str(node.get("_target_")).startswith("pytorch_lightning.") for node in config.values())
    for name, node in config.items():
        try:
            callback = make(node)
        except Exception as error:
            if not (isinstance(error, ValueError) or node["_target_"].startswith("pytorch_lightning.")):
                raise
            yield f"callbacks.{name}: {_first_line(error)}"
            continue
        named = f"callbacks.{name}._target_={node['_target_']}"
        if not isinstance(callback, pl.Callback):
            yield f"{named} is no pytorch_lightning.Callback"
        elif isinstance(callback, GradientAccumulationScheduler):
            yield f"{named} makes the number of steps unknown: give +trainer.accumulate_grad_batches=N"
        monitor = getattr(callback, "monitor", None)
        if names is not None and not own and not (monitor in (None, *names) or str(monitor).startswith("train/")):
            yield f"callbacks.{name}.monitor={monitor} is not measured: {', '.join([*names, 'train/loss'])} are"


def _stepped(optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Iterator[str]:
    """What an optimiser says of a step."""
    named = f"optimizer._target_={config['_target_']} is not possible"
    parameters = inspect.signature(type(optimizer).step).parameters
    if "closure" in parameters and parameters["closure"].default is inspect.Parameter.empty:
        yield f"{named}: it computes the loss of a step several times, and here a step computes it once"
    elif not config.get("capturable"):  # for GPUs
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
        except RuntimeError as error:
            yield f"{named}: {_first_line(error)}"


def _installed(target: str) -> Iterator[str]:
    """Of loggers that need a package which does not come with ours."""
    for name, packages in {"TensorBoardLogger": ("tensorboard", "tensorboardX"), "MLFlowLogger": ("mlflow",)}.items():
        if target.endswith(f".{name}") and not any(map(find_spec, packages)):
            extra = packages[0]
            yield f"logger={extra} is not installed: pip install -c constraints.txt -e '.[{extra}]'"


def _wandb(logger: dict[str, Any]) -> Iterator[str]:
    """The keys that Lightning's logger hands on to wandb.init, which is called long after the data is loaded."""
    call = pydoc.locate(logger["_target_"])
    if not (isinstance(call, type) and issubclass(call, WandbLogger)):
        return
    import pydantic  # wandb brings it
    import wandb  # takes a second

    known = {"_target_", *inspect.signature(WandbLogger).parameters, *inspect.signature(wandb.init).parameters}
    for key in logger.keys() - known:
        yield f"logger.{key} is no key: neither of Lightning's WandbLogger nor of wandb.init"
    settings = logger.get("settings") or {}
    if not fits(settings, dict[str, Any]):
        yield f"logger.settings={shown(settings)} is not possible: it must be keys of wandb.Settings"
        return
    try:
        wandb.Settings(**settings)
    except pydantic.ValidationError as error:
        for wrong in error.errors():
            yield f"logger.settings.{wrong['loc'][0]}={shown(wrong['input'])} is not possible: {wrong['msg']}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_data(cfg: DictConfig, source: Source, validation: Records | None) -> None:
    """Hold a config that `check_config` has passed against the data.

    Raises:
        ValueError: one line a problem, each naming a config key.
    """
    problems: list[str] = []
    classes, images = source.train.num_classes, len(source.train)
    k, n = cfg.sampler.get("classes_per_batch"), cfg.sampler.get("samples_per_class")
    held_out = "" if validation is None else f" (beside the {len(np.unique(validation.labels))} that validate)"
    fits = _batch_that_fits(cfg, source.train.labels)
    if None not in (k, n) and k * n > images:
        problems.append(
            f"a batch of sampler.classes_per_batch={k} x sampler.samples_per_class={n} images is larger than the "
            f"training set of {counted(images, 'image')}{fits}"
        )
    elif k is not None and k > classes:
        problems.append(
            f"sampler.classes_per_batch={k} is more than the {counted(classes, 'training class')}{held_out}{fits}"
        )
    problems += too_few_classes(cfg.loss, classes)
    problems += _sized(cfg, classes)
    if classes < 2:
        problems.append("data: the training part has one class, so no anchor has a negative")
    if len(np.unique(source.train.labels)) == images:
        problems.append("data: no class of the training part has two images, so no anchor has a positive")
    every, interval = cfg.trainer.get("check_val_every_n_epoch"), cfg.trainer.val_check_interval
    batches = None
    if not any("sampler." in problem for problem in problems):
        try:
            batches = batches_of_an_epoch(cfg, source.train.labels)
        except ValueError as error:
            problems.append(_first_line(error))
    if batches is not None and every is not None and isinstance(interval, int) and interval > batches:
        problems.append(
            f"trainer.check_val_every_n_epoch={every} counts epochs, and within them trainer.val_check_interval="
            f"{interval} counts steps, of which an epoch has {batches}: give trainer.val_check_interval=1.0 for its end"
        )
    problems += _tested(cfg, source, validation)
    if problems:
        raise ValueError("\n".join(problems))


def _batch_that_fits(cfg: DictConfig, labels: np.ndarray) -> str:
    """Settings of a batch that this training set can fill, as the end of a message; empty: it is too small for any."""
    sizes = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    sizes = sizes[: cfg.sampler.get("classes_per_batch")]
    n = min(cfg.sampler.get("samples_per_class") or 2, int(sizes[-1]))
    group = "batch" if "classes_per_batch" in cfg.get("batch", {}) else "sampler"
    return f": {group}.classes_per_batch={len(sizes)} {group}.samples_per_class={n} fits" if n > 1 else ""


def _sized(cfg: DictConfig, classes: int) -> Iterator[str]:
    """What a loss says to the number of classes, which it does not know before: weights that no machine could hold."""
    node: Any = OmegaConf.to_container(cfg.loss, resolve=True)
    if leaves_open(node, "num_classes") and not leaves_open(node, "groups"):
        fill_in_sizes(node, (cfg.embedder.get("dim") or 2,), classes)
        try:
            with torch.device("meta"):
                make({**node, "_partial_": True})()
        except ValueError as error:
            yield _first_line(error)


def check_tested(cfg: DictConfig, source: Source) -> None:
    """Hold a config against the data that is tested: all that evaluation needs.

    Raises:
        ValueError: one line a problem, each naming a config key.
    """
    if problems := list(_tested(cfg, source, None)):
        raise ValueError("\n".join(problems))


def _tested(cfg: DictConfig, source: Source, validation: Records | None) -> Iterator[str]:
    """Parts in which there is nothing to find, or whatever is found is right; more neighbours than there are."""
    neighbours = {}
    for side, queries, gallery in (("test", source.test, source.gallery), ("validation", validation, None)):
        if queries is None:
            continue
        if gallery is not None:
            # A query that is in the gallery too does not find itself there.
            own = source.own_index
            assert own is not None
            neighbours[side] = min(len(gallery) - bool((own >= 0).any()), fewest_found(queries, gallery))
            yield from problems_of_groups(side, queries, gallery)
            if len(np.unique(gallery.labels)) < 2:
                yield "data: the gallery has one class, so whatever a query of it finds is right: it needs two"
            sizes = np.bincount(gallery.labels, minlength=int(queries.labels.max()) + 1)
            itself = (own >= 0) & (gallery.labels[own] == queries.labels)
            if not (sizes[queries.labels] - itself).any():
                yield "data: no class of the queries is in the gallery, so no query has anything to find"
            continue
        neighbours[side] = min(len(queries) - 1, fewest_found(queries, queries))
        yield from problems_of_groups(side, queries, queries)
        pairs = int((np.bincount(queries.labels) >= 2).sum())
        # Of known classes it takes some images of each.
        way = "" if side == "test" or source.class_disjoint else ". Give a larger data.val_fraction, or protocol=paper"
        if not pairs:
            yield f"data: no class of the {side} part has two images, so no query has anything to find{way}"
        elif pairs < 2:
            yield f"data: only one class of the {side} part has two images: {TWO_CLASSES}{way}"
    for name, also in (cfg.evaluator.get("also") or {}).items():
        for key in ("neighbours", "k1", "k2"):
            if also.get(key, 0) > neighbours["test"]:
                yield (
                    f"evaluator.also.{name}.{key}={also[key]} is more than the {neighbours['test']} neighbours that a "
                    "query of the test part can have"
                )
    dim, searched = cfg.embedder.get("dim"), len(source.test if source.gallery is None else source.gallery)
    for code in cfg.evaluator.get("codes") or () if isinstance(dim, int) else ():
        if said := problem_of(code, dim, searched):
            yield said
    fewest = min(neighbours, key=lambda side: neighbours[side])
    if "recall" in cfg.evaluator.get("metrics", ()) and max(cfg.evaluator.get("ks", [0])) > neighbours[fewest]:
        yield (
            f"evaluator.ks={list(cfg.evaluator.ks)} asks for more neighbours than the {neighbours[fewest]} that a "
            f"query of the {fewest} part can have"
        )
