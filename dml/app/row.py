"""The row of a result: all that decides it, for tables and for whoever compares two of them."""

import hashlib
import sys
from importlib.metadata import version
from typing import Any

import torch

from dml.app.build import Built
from dml.data.dataset import Source

# Of the groups trainer and data, what says where a run is carried out and not what comes out of it.
_MACHINE = frozenset({"accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "enable_model_summary"})
_PLACE = frozenset(
    {"_target_", "root", "train_root", "test_root", "download", "cache", "cache_dir", "on_error", "max_bad"}
)


def _fingerprint(source: Source) -> str:
    """Of the classes and labels that are tested on: two folders of one name are not one data set."""
    digest = hashlib.sha256()
    for records in (source.test, source.gallery):
        if records is not None:
            digest.update("\0".join(records.class_names).encode() + records.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:12]


def _method(loss: dict[str, Any]) -> str:
    """The module of the loss, and of one that it wraps: nra, memory(contrastive)."""
    name = loss["_target_"].split(".")[-2]
    return f"{name}({_method(loss['loss'])})" if "loss" in loss else name


def row_of(built: Built, steps: int, chosen: str | None, code: str) -> dict[str, Any]:
    """All that decides a result, for tables and for whoever compares two of them."""
    config = built.model.config
    step = torch.load(chosen, map_location="cpu", weights_only=True, mmap=True)["global_step"] if chosen else steps
    pretrained = config["backbone"].get("checkpoint_path") or config["backbone"]["pretrained"]
    packages = ("dml", "torch", "torchvision", "pytorch-lightning", "timm")
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
    return {
        "method": _method(config["loss"]),
        "data": built.source.name,
        "train_images": len(built.source.train),
        "train_classes": built.source.train.num_classes,
        "broken_images": len(built.broken),  # left out of all parts
        "passed_over": dict(built.source.passed_over),
        "loss": config["loss"],
        "sampler": config["sampler"],
        "backbone": config["backbone"]["name"],
        "weights": pretrained or "random",
        "dimension": config["embedder"]["dim"],
        "freeze_bn": config["embedder"]["freeze_bn"],
        "normalize": {"training": config["embedder"]["normalize"], "test": config["evaluator"]["normalize"]},
        "transform": config["transform"],
        "batch": config["sampler"]["classes_per_batch"] * config["sampler"]["samples_per_class"],
        "optimizer": config["optimizer"],
        "scheduler": config["scheduler"],
        "trainer": {key: value for key, value in config["trainer"].items() if key not in _MACHINE},
        "protocol": config["protocol"],
        "split": {key: value for key, value in config["data"].items() if key not in _PLACE},
        "test": _fingerprint(built.source),
        # What is not plain; how memory is had changes no number.
        "engine": {k: v for k, v in config.get("engine", {}).items() if v and k != "reuse_memory"},
        "class_disjoint": built.source.class_disjoint,
        "leaked": config["protocol"]["watch_test"] or bool(built.source.leak),
        "leak": built.source.leak or None,  # why, where it is not the protocol that says so
        "seed": config["seed"],
        "steps": steps,
        "evaluated_step": step,
        "versions": versions,
        "code": code,
    }
