"""evaluate.py ckpt_path=[a,b,c]: several checkpoints as one model, whose embeddings stand side by side."""

import pydoc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from dml.app.build import Built, make_embedder
from dml.app.checks import check_config
from dml.app.network import check_network
from dml.app.row import method_of
from dml.app.schema import parameters_of
from dml.app.settings import Model
from dml.models.joined import Joined

# Of a transform, what makes no difference to a test image.
_TRAINING = frozenset({"train_crop", "flip", "degrees", "translate", "scale", "augment"})


def checkpoint_paths(cfg: DictConfig) -> list[Path]:
    """Those that ckpt_path names: one, or several.

    Raises:
        ValueError: none.
    """
    given = [cfg.ckpt_path] if isinstance(cfg.ckpt_path, str) else list(cfg.ckpt_path)
    if not given:
        raise ValueError("ckpt_path=[] is not possible: give a checkpoint, or several to evaluate side by side")
    return [Path(str(path)).expanduser() for path in given]


def embedders_of(
    paths: Sequence[Path], checkpoints: Sequence[dict[str, Any]], cfg: DictConfig, told: set[str]
) -> list[nn.Module]:
    """The embedders of further checkpoints, for the images that the first one takes.

    Args:
        paths, checkpoints: the first one, and the others.
        cfg: of the evaluation.
        told: keys that the command line gives: a transform that it names holds for all.

    Raises:
        ValueError: a checkpoint's config or weights do not fit each other, or its test images are prepared otherwise.
    """
    found = []
    first = _with_defaults(checkpoints[0]["dml_config"]["transform"])
    named = any(key == "transform" or key.startswith("transform.") for key in told)
    for path, checkpoint in zip(paths[1:], checkpoints[1:], strict=True):
        config = OmegaConf.create(checkpoint["dml_config"])
        check_config(config, Model)
        theirs = _with_defaults(checkpoint["dml_config"]["transform"])
        differing = [key for key in sorted({*first, *theirs} - _TRAINING) if first.get(key) != theirs.get(key)]
        if differing and not named:
            said = ", ".join(f"{key} ({first.get(key)}, here {theirs.get(key)})" for key in differing)
            raise ValueError(
                f"ckpt_path: {path} was tested on images of another transform than {paths[0]}: {said}. Give "
                "transform=..., which then holds for all of them"
            )
        config.transform = cfg.transform
        check_network(config)
        embedder = make_embedder(config, from_checkpoint=True)
        weights = {
            name.removeprefix("embedder."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("embedder.")
        }
        try:
            embedder.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"ckpt_path={path} holds another model: {str(error).splitlines()[0]}") from error
        found.append(embedder)
    return found


def _with_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """A node with the defaults of the keys that its version of the code did not have."""
    call = pydoc.locate(str(node.get("_target_")))
    parameters = parameters_of(call)[0] if callable(call) else {}
    found = {key: p.default for key, p in parameters.items() if p.default is not p.empty and key not in _TRAINING}
    return {**found, **node}


def join(built: Built, others: Sequence[nn.Module]) -> None:
    """Have the model give the embeddings of the others beside its own."""
    if others:
        normalize = bool(getattr(built.model.evaluator, "normalize", False))
        built.model.embedder = Joined([built.model.embedder, *others], normalize=normalize)


def parts_of_row(paths: Sequence[Path], checkpoints: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the row says of each; nothing of one alone."""
    if len(paths) == 1:
        return []
    configs = [checkpoint["dml_config"] for checkpoint in checkpoints]
    return [
        {
            "checkpoint": str(path),
            "method": method_of(config["loss"]),
            "backbone": config["backbone"].get("name", config["backbone"]["_target_"]),
            "dimension": config["embedder"].get("dim"),
            "seed": config["seed"],
        }
        for path, config in zip(paths, configs, strict=True)
    ]
