"""Checks across config groups, before any heavy work. Every problem is reported, not only the first."""

import pydoc

import numpy as np
from omegaconf import DictConfig

from dml.data.dataset import Records, Source


def check(cfg: DictConfig, source: Source, validation: Records | None) -> None:
    """Hold the groups of a config against each other and against the data.

    Raises:
        ValueError: one line a problem, each naming a config key.
    """
    problems: list[str] = []
    classes, images = source.train.num_classes, len(source.train)
    k, n = cfg.sampler.get("classes_per_batch"), cfg.sampler.get("samples_per_class")
    if k is not None and n is not None:
        if k * n > images:
            problems.append(
                f"a batch of sampler.classes_per_batch={k} x sampler.samples_per_class={n} images is larger than the "
                f"training set of {images}"
            )
        if k > classes:
            problems.append(f"sampler.classes_per_batch={k} is more than the {classes} training classes")
        needed = getattr(pydoc.locate(cfg.loss._target_), "min_samples_per_class", 1)
        if n < needed:
            problems.append(
                f"sampler.samples_per_class={n} leaves anchors without a positive: "
                f"{cfg.loss._target_.rpartition('.')[2]} needs at least {needed}"
            )
    if cfg.loss.get("num_classes") is not None and cfg.loss.num_classes < classes:
        problems.append(f"loss.num_classes={cfg.loss.num_classes} is less than the {classes} training classes")
    if cfg.loss.get("embedding_dim") is not None and cfg.loss.embedding_dim != cfg.embedder.dim:
        problems.append(f"loss.embedding_dim={cfg.loss.embedding_dim} is not embedder.dim={cfg.embedder.dim}")
    if cfg.protocol.validate:
        ks, names = cfg.evaluator.ks, cfg.evaluator.metrics
        measured = [f"val/recall@{k}" for k in ks if "recall" in names] + [f"val/{n}" for n in names if n != "recall"]
        if cfg.protocol.monitor not in measured:
            problems.append(f"protocol.monitor={cfg.protocol.monitor} is not measured: {', '.join(measured)} are")
    if cfg.protocol.watch_test and cfg.protocol.validate:
        problems.append("protocol.watch_test=true is for protocol=paper: a validated run has its own curves")
    if cfg.trainer.max_steps < 1:
        problems.append(f"trainer.max_steps={cfg.trainer.max_steps} is not possible: it must be at least 1")
    if cfg.trainer.val_check_interval < 1:
        problems.append(f"trainer.val_check_interval={cfg.trainer.val_check_interval} is not possible: it counts steps")
    neighbours = {}
    for side, queries, gallery in (("test", source.test, source.gallery), ("validation", validation, None)):
        if queries is not None:
            neighbours[side] = len(gallery) if gallery is not None else len(queries) - 1
            if gallery is None and len(np.unique(queries.labels)) == len(queries):
                problems.append(f"data: no class of the {side} part has two images, so no query has anything to find")
    fewest = min(neighbours, key=lambda side: neighbours[side])
    if "recall" in cfg.evaluator.metrics and max(cfg.evaluator.ks) > neighbours[fewest]:
        problems.append(
            f"evaluator.ks={list(cfg.evaluator.ks)} asks for more neighbours than the {neighbours[fewest]} that a "
            f"query of the {fewest} part can have"
        )
    if len(np.unique(source.train.labels)) == images:
        problems.append("data: no class of the training part has two images, so no anchor has a positive")
    if problems:
        raise ValueError("\n".join(problems))
