"""One image through transform, backbone and embedder, before data or cache is touched."""

import copy
import pydoc
import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dml.app.follow import NO_WEIGHTS, timms_options
from dml.app.make import make
from dml.app.sizes import fill_in_sizes, group_problems, groups_of
from dml.engine.parameters import check_rules
from dml.engine.rules import Rule
from dml.models.backbones import create_backbone, layer_scales
from dml.models.images import patch_of, sizes_near
from dml.models.weights import first_line


def check_network(cfg: DictConfig) -> None:
    """Hold the network of a checkpoint against the images that it is to embed.

    Raises:
        ValueError: they do not go together; names the key.
    """
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    if said := list(network_problems(config, trained=True)):  # type: ignore[arg-type]
        raise ValueError("\n".join(said))


def network_problems(
    config: Mapping[str, Any], *, trained: bool = False, loss: Mapping[str, Any] | None = None, rules: bool = False
) -> Iterator[str]:
    """What two images say of a network: a size that it does not take, feature maps, parts without what they need.

    On torch's meta device, which computes shapes only and takes a fraction of a second; for real where a part cannot be
    made or run there. No weights are fetched; a weights file is compared with the network.

    Args:
        config: sound groups transform, backbone and embedder.
        trained: weights will come from a checkpoint, so no file is read.
        loss: the group, of a sound loss as far as it can be told without a network; None: it is not looked at.
        rules: the optimizer group is sound, and its rules are about these weights and the loss's.

    Returns:
        One line a problem.
    """
    try:
        images = _images(config["transform"])
    except Exception as error:
        yield _said("transform", error)
        return
    problems: list[str] = []
    for place in (torch.device("meta"), nullcontext()):
        with torch.random.fork_rng(devices=[]), torch.no_grad(), place:
            problems = list(_problems(config, images, trained, loss, rules))
        if not problems:
            return
    yield from problems


def _images(transform: dict[str, Any]) -> Tensor:
    """Two test images as the network gets them, uint8 [B, 3, H, W]."""
    made = make(transform)
    if missing := [k for k in ("train", "test", "decode", "crop_to_box", "draws_globally") if not hasattr(made, k)]:
        raise ValueError(
            f"{type(made).__name__} has no {', '.join(missing)} (docs/own_parts.md says what they are for)"
        )
    image = made.test(made.decode(np.zeros((300, 400, 3), dtype=np.uint8), None))
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"its test images must be uint8 [3, H, W], not {_shape(image)}")
    return torch.stack([image, image]).reshape(-1, *image.shape[-3:])


def _problems(
    config: Mapping[str, Any], images: Tensor, trained: bool, loss: Mapping[str, Any] | None, rules: bool
) -> Iterator[str]:
    """Of the network as it is made now."""
    node = config["backbone"]
    # Here only sizes matter, and a backbone's own file, which is compared.
    keeps_file = not (trained or config["embedder"].get("checkpoint_path"))
    no_weights = {key: value for key, value in NO_WEIGHTS.items() if not (keeps_file and key == "checkpoint_path")}
    try:
        backbone = make(node, **{key: value for key, value in no_weights.items() if key in node})
        if not isinstance(backbone, nn.Module):
            raise ValueError(f"it must be a torch.nn.Module, not a {type(backbone).__name__}")
        images = torch.empty_like(images, device="meta") if _is_meta(backbone) else images
    except Exception as error:
        yield _said("backbone", error)
        return
    if not trained and any(side % patch_of(backbone) for side in images.shape[-2:]):
        yield (
            f"transform.size={images.shape[-1]} does not fit the backbone's patches of {patch_of(backbone)} pixels"
            f"{_fitting(node, images, as_made=trained)}"
        )
        return
    try:
        features = backbone.eval()(images.float() / 255)
    except Exception as error:
        size = "x".join(map(str, images.shape[-2:]))
        fitting = _fitting(node, images, as_made=trained)
        yield _said("backbone", error, f" with images of {size} pixels (transform.size{fitting})")
        return
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
        pooling = "; remove backbone.global_pool" if node.get("global_pool", "avg") == "" else ""
        yield (
            f"backbone: it must give features [B, C], and gives {_shape(features)} for images "
            f"{list(images.shape)}{pooling}"
        )
        return
    embedder_node = config["embedder"]
    said_width = embedder_node.get("features") or getattr(backbone, "head_hidden_size", features.shape[1])
    if said_width != features.shape[1]:
        key = "embedder.features" if embedder_node.get("features") else "backbone: its head_hidden_size"
        yield f"{key}={said_width} is not the number of its features, which is {features.shape[1]}"
        return
    try:
        given = {"checkpoint_path": None} if trained and "checkpoint_path" in embedder_node else {}
        embedder = make(embedder_node, backbone=backbone, **given)
        columns = embedder.eval()(images)
        embeddings = embedder.join(columns) if hasattr(embedder, "join") else columns
    except Exception as error:
        yield _said("embedder", error).replace("features=C", f"features={features.shape[1]}")
        return
    dim = embedder_node.get("dim")
    shape = list(embeddings.shape) if isinstance(embeddings, Tensor) else []
    if len(shape) != 2 or shape != [len(images), shape[1] if dim is None else dim]:
        wanted = "D" if dim is None else f"embedder.dim={dim}"
        yield (
            f"embedder: it must give embeddings [B, {wanted}], and gives {_shape(embeddings)} for {len(images)} images"
        )
    elif not any(parameter.requires_grad for parameter in embedder.parameters()):
        yield "embedder: none of its weights and of the backbone's can learn (requires_grad)"
    elif columns.shape != (len(images), width := sum(groups_of(embedder, shape[1]))):
        yield f"embedder: it must give columns [B, {width}], as its groups say, and gives {_shape(columns)}"
    elif loss is not None:
        yield from _learner(config["optimizer"] if rules else None, backbone, embedder, loss, shape[1])


def _learner(
    optimizer: Mapping[str, Any] | None, backbone: nn.Module, embedder: nn.Module, node: Mapping[str, Any], dim: int
) -> Iterator[str]:
    """A loss that does not go with the embedder's columns, and rules that do not go with the weights of both."""
    try:
        fill_in_sizes(sized := copy.deepcopy(node), groups_of(embedder, dim), 2)
        loss = make(sized)
    except ValueError as error:
        yield _said("loss", error)
        return
    yield from group_problems(node, loss, embedder)
    if optimizer is not None:
        yield from _rules(optimizer, backbone, nn.ModuleDict({"embedder": embedder, "loss": loss}))


def _fitting(backbone: Mapping[str, Any], images: Tensor, *, as_made: bool) -> str:
    """Which sizes near that of the images a backbone takes, in words."""
    height, width = images.shape[-2:]
    if height != width or pydoc.locate(backbone["_target_"]) is not create_backbone:
        return ""
    sizes = sizes_near(backbone["name"], height, timms_options(backbone), as_made=as_made)
    return f"; {' or '.join(map(str, sizes))} would fit" if sizes else ""


def _rules(optimizer: Mapping[str, Any], backbone: nn.Module, learner: nn.Module) -> Iterator[str]:
    """Rules and layer decay that these weights do not go with."""
    try:
        check_rules([Rule(**rule) for rule in optimizer.get("groups") or []], list(learner.named_parameters()))
        if optimizer.get("layer_decay") is not None:
            layer_scales(backbone, optimizer["layer_decay"])
    except ValueError as error:
        yield first_line(error)


def _is_meta(part: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))


def _shape(value: Any) -> str:
    return (
        f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )


def _said(group: str, error: Exception, beside: str = "") -> str:
    """One line of an error: a part's own words for a user's mistake, else with the place in the code."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = first_line(error)
    if isinstance(error, ValueError) and not beside:
        return said if said.startswith(f"{group}.") else f"{group}: {said}"
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if "/torch/" not in Path(frame.filename).as_posix()][-1]  # where torch was called
    return f"{group}: it fails{beside}: {type(error).__name__}: {said} ({last.filename}, line {last.lineno})"
