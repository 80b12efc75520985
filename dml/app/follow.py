"""Keys that are null because the backbone says them: the images it was trained on, and how many features it gives."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from dml.app.make import make
from dml.models.images import UNSAID, images_of, made_for

_OURS = "dml.models.backbones.create_backbone"
_TRANSFORMS = "dml.data.transforms.Transforms"
_EMBEDDER = "dml.models.embedder.Embedder"
# Keys of a backbone that say where its weights come from, or which network it is: the others are options of timm's.
_BESIDE = ("_target_", "name", "pretrained", "checkpoint_path", "lora_rank", "lora_of")
NO_WEIGHTS = {"pretrained": False, "weights": None, "checkpoint_path": None}


def follow_backbone(cfg: DictConfig, config: Mapping[str, Any], *, trained: bool = False) -> str:
    """Fill in what the backbone says and nobody else did.

    That is `transform.size`, `transform.interpolation` and `transform.resize`, which is 8/7 of the size (the paper's
    256 for 224); `backbone.img_size`, where it has to be made for another size than it was trained on; and, without a
    head, `embedder.dim`.

    Args:
        cfg: the config; changed.
        config: the same as plain data, without groups that are not sound; transform and backbone are there.
        trained: the weights are there already, so the network stays as it is.

    Returns:
        A line that says what was filled in; empty if nothing was.
    """
    found = _images(config)
    if not trained:
        found |= _network(config, found)
        found |= _dimension(config) if "embedder" in config else {}
    with open_dict(cfg):
        for key, value in found.items():
            OmegaConf.update(cfg, key, value, force_add=True)
    named = config["backbone"].get("name") or config["backbone"]["_target_"]
    return f"As backbone {named} has it: " + ", ".join(f"{k}={v}" for k, v in found.items()) if found else ""


def timms_options(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What a backbone of `create_backbone` is made with, beside name and weights."""
    return {key: value for key, value in backbone.items() if key not in _BESIDE}


def _images(config: Mapping[str, Any]) -> dict[str, Any]:
    transform, backbone = config["transform"], config["backbone"]
    if transform["_target_"] != _TRANSFORMS:
        return {}
    images = images_of(backbone["name"]) if backbone["_target_"] == _OURS else UNSAID
    size = transform["size"] or backbone.get("img_size") or images.size
    wanted = {"size": size, "resize": round(size * 8 / 7), "interpolation": images.interpolation}
    return {f"transform.{key}": value for key, value in wanted.items() if transform.get(key, "") is None}


def _network(config: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What the network has to be made with to take the images, if that is possible; else `network_problems` tells."""
    backbone = config["backbone"]
    size = found.get("transform.size", config["transform"].get("size"))
    if backbone["_target_"] != _OURS or not isinstance(size, int):
        return {}
    images = images_of(backbone["name"])
    if not images.fixed or size == images.size or "img_size" in backbone:
        return {}
    options = made_for(backbone["name"], size, timms_options(backbone)) or {}
    return {f"backbone.{key}": value for key, value in options.items()}


def _dimension(config: Mapping[str, Any]) -> dict[str, int]:
    embedder = config["embedder"]
    if embedder["_target_"] != _EMBEDDER or embedder["dim"] is not None or embedder.get("head") != "none":
        return {}
    backbone = config["backbone"]
    no_weights = {key: value for key, value in NO_WEIGHTS.items() if key in backbone}
    for place in (torch.device("meta"), nullcontext()):  # for real, where it cannot be made without memory
        try:
            with torch.random.fork_rng(devices=[]), place:
                made = make({**embedder, "checkpoint_path": None}, backbone=make({**backbone, **no_weights}))
            return {"embedder.dim": made.dim}
        except Exception:  # `network_problems` makes the same again, and tells
            continue
    return {}
