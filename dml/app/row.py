"""The row of a result: all that decides it, for tables and for whoever compares two of them."""

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dml.app.build import Built
from dml.data.trained_on import TrainedOn, of_test_part

# Of the groups trainer and data, what says where a run is carried out and not what comes out of it.
_MACHINE = frozenset({"accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "enable_model_summary"})
_PLACE = frozenset(
    {"file", "unpacked_dir", "root", "train_root", "test_root", "download", "cache", "cache_dir", "on_error", "max_bad"}
)
# Of the groups backbone and embedder, what the row has under a name of its own.
_NAMED = frozenset({"name", "pretrained", "checkpoint_path", "dim", "freeze_bn", "freeze", "normalize"})
_OURS = {"backbone": "dml.models.backbones.create_backbone", "embedder": "dml.models.embedder.Embedder"}

UNKNOWN = "unknown, as the checkpoint does not say what it was trained on"


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """The parts among the arguments of another: nodes with a `_target_`, alone or in a list."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict) and "_target_" in value:
            yield value
        elif isinstance(value, list):
            yield from _parts(value)


def method_of(loss: dict[str, Any]) -> str:
    """The module of one of our losses, and of those that it wraps: nra, memory(contrastive); of others all its name."""
    package, _, rest = loss["_target_"].partition("dml.losses.")
    name = loss["_target_"] if package or not rest else rest.split(".")[0]
    inner = ", ".join(map(method_of, _parts(loss)))
    return f"{name}({inner})" if inner else name


def _versions() -> dict[str, str]:
    packages = ("dml", "torch", "torchvision", "pytorch-lightning", "timm")
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # on PYTHONPATH alone
            found[name] = "not installed"
    return found


def _network(config: dict[str, Any]) -> dict[str, Any]:
    """What else decides the network: other keys of backbone and embedder, and whose they are if not ours."""
    network = {}
    for group, ours in _OURS.items():
        own = config[group].get("_target_") != ours
        plain = {key for key, value in config[group].items() if value is None or (key, value) == ("head", "linear")}
        named = set() if own else {*_NAMED, *plain, "_target_"}
        network[group] = {key: value for key, value in config[group].items() if key not in named}
    return {group: rest for group, rest in network.items() if rest}


def _scaled(embedder: torch.nn.Module) -> dict[str, list[float]]:
    """The mean and deviation that images in 0 .. 1 are scaled by, where the embedder has them."""
    held = {key: getattr(embedder, key, None) for key in ("mean", "std")}
    found = {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}
    return {key: [round(number, 6) for number in value.flatten().tolist()] for key, value in found.items()}


def row_of(built: Built, steps: int, chosen: str | None, code: str) -> dict[str, Any]:
    """All that decides a result, for tables and for whoever compares two of them.

    It takes any part that a run takes: what a part of one's own has no key for is null here.

    Args:
        built: the run's parts. Before it is tested the dimension is the config's.
        steps: trained.
        chosen: the checkpoint that validation chose, if it did.
        code: fingerprint of the code.
    """
    config = built.model.config
    backbone, embedder, sampler = config["backbone"], config["embedder"], config["sampler"]
    step = torch.load(chosen, map_location="cpu", weights_only=True, mmap=True)["global_step"] if chosen else steps
    tested = built.model.test_embeddings
    sizes = [sampler.get("classes_per_batch"), sampler.get("samples_per_class")]
    own_backbone = backbone["_target_"] != _OURS["backbone"]
    file = embedder.get("checkpoint_path") or backbone.get("checkpoint_path")
    if "weights_sha256" in config:
        file = f"{file or 'of a package'} (sha256 {config['weights_sha256']})"
    weights = file or backbone.get("pretrained")
    return {
        "method": method_of(config["loss"]),
        "data": built.source.name,
        "train_images": len(built.source.train),
        "train_classes": built.source.train.num_classes,
        "broken_images": len(built.broken),  # left out of all parts
        "passed_over": dict(built.source.passed_over),
        "parts": {name: records.sizes for name, records in built.source.parts(built.validation).items()},
        "notes": list(built.source.notes),
        "loss": config["loss"],
        "sampler": sampler,
        "backbone": backbone["_target_"] if own_backbone else backbone["name"],
        "weights": weights or ("random" if "pretrained" in backbone else None),
        "dimension": embedder.get("dim") if tested is None else tested[0].shape[1],
        "freeze_bn": embedder.get("freeze_bn"),
        # With its backbone a run does without augmentation (dml/app/frozen.py).
        "frozen": embedder.get("freeze") and f"{embedder['freeze']}: features of the test transform",
        "normalize": {"training": embedder.get("normalize"), "test": config["evaluator"].get("normalize")},
        # Other rankings and codes, whose metrics have names of their own.
        "also": config["evaluator"].get("also") or {},
        "codes": config["evaluator"].get("codes") or {},
        "network": _network(config),
        "transform": config["transform"],
        "images": _scaled(built.model.embedder),
        "batch": None if None in sizes else sizes[0] * sizes[1],
        "optimizer": config["optimizer"],
        "scheduler": config["scheduler"],
        "trainer": {key: value for key, value in config["trainer"].items() if key not in _MACHINE},
        "protocol": config["protocol"],
        "split": {key: value for key, value in config["data"].items() if key not in _PLACE},
        "test": of_test_part(built.source),
        "callbacks": config.get("callbacks", {}),
        # What is not plain; how memory is had changes no number.
        "engine": {k: v for k, v in config.get("engine", {}).items() if v and k != "reuse_memory"},
        "class_disjoint": built.source.class_disjoint,
        "leaked": config["protocol"]["watch_test"] or bool(built.source.leak),
        "leak": built.source.leak or None,  # why, where it is not the protocol that says so
        "seed": config["seed"],
        "steps": steps,
        "evaluated_step": step,
        "versions": _versions(),
        "code": code,
    }


def row_of_zero_shot(built: Built, code: str) -> dict[str, Any]:
    """The row of a network that nobody has trained here: nothing of the loss, nor of how it is minimised."""
    untrained = ("loss", "sampler", "batch", "optimizer", "scheduler", "frozen", "callbacks", "engine")
    row = row_of(built, 0, None, code) | dict.fromkeys(untrained)
    parts = {name: sizes for name, sizes in row["parts"].items() if name in ("test", "gallery")}
    numbers = {"train_images": 0, "train_classes": 0, "parts": parts}
    return row | numbers | {"method": "zero-shot", "trainer": {"precision": row["trainer"].get("precision")}}


def row_of_evaluation(
    built: Built, checkpoint: dict[str, Any], trained_on: TrainedOn | None, leak: str | None, code: str
) -> dict[str, Any]:
    """The row of a training, as far as the checkpoint says, with what was tested now.

    Args:
        built: with the config of the checkpoint, and the groups that evaluation has from elsewhere.
        checkpoint: as `read_to_evaluate` gives it.
        trained_on: what it carries of its training data.
        leak: what of the tested data was trained on; empty: nothing; None: it is unknown.
        code: fingerprint of the code that evaluates.
    """
    row = row_of(built, checkpoint["global_step"], None, code)
    trainer = row["trainer"]
    return {
        **row,
        "trained_on": trained_on and trained_on.data,
        "train_images": trained_on and trained_on.train_images,
        "train_classes": trained_on and trained_on.train_classes,
        "train_split": {key: value for key, value in checkpoint["dml_config"]["data"].items() if key not in _PLACE},
        "trainer": {key: value for key, value in checkpoint["trainer"].items() if key not in _MACHINE},
        "parts": {
            **(trained_on.parts if trained_on else {}),
            **{name: sizes for name, sizes in row["parts"].items() if name in ("test", "gallery")},
        },
        "tested": {
            "images": len(built.source.test),
            "classes": built.source.test.sizes["classes"],  # a gallery may have more
            "gallery_images": built.source.gallery and len(built.source.gallery),
            "precision": trainer.get("precision"),
        },
        "class_disjoint": None if leak is None else row["class_disjoint"] and not leak,
        "leaked": row["leaked"] or (None if leak is None else bool(leak)),
        "leak": row["leak"] or (UNKNOWN if leak is None else leak or None),
    }
