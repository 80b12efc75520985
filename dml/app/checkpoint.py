"""Reading a checkpoint: plain data only, and one clear line when it is not one of ours."""

import sys
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore

# What `evaluate.py` takes from the checkpoint unless told otherwise.
GROUPS = ("data", "transform", "evaluator", "loader")


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """Load a checkpoint of this framework, without running any code that it may hold.

    Args:
        path: the file.
        key: config key to name in errors.

    Raises:
        ValueError: the file is missing, truncated, or not a checkpoint of this framework.
    """
    if path.is_dir():
        raise ValueError(f"{key}={path} is a folder: give the file, such as {path / 'checkpoints' / 'best.ckpt'}")
    if not path.is_file():
        raise ValueError(f"{key}={path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler or its zip reader meets
        raise ValueError(
            f"{key}={path} cannot be read as a checkpoint (truncated, or another kind of file): "
            f"{(str(error) or type(error).__name__).split('. ')[0]}"
        ) from error
    if not isinstance(checkpoint, dict) or not {"dml_config", "state_dict", "global_step"} <= checkpoint.keys():
        raise ValueError(f"{key}={path} is no checkpoint of a run of train.py: it carries no config")
    return checkpoint


def offer_trained_config(arguments: list[str]) -> None:
    """Offer the config inside of ckpt_path=FILE to Hydra, as choice `as_trained` of each group.

    Then `evaluator.ks=[1]` or `data=folder data.root=DIR` on the command line change just that. Exits with one line
    when the checkpoint cannot be used.
    """
    paths = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("ckpt_path=")]
    nodes: dict[str, Any] = {group: {} for group in GROUPS}
    if paths:
        try:
            config = read_checkpoint(Path(paths[-1]), "ckpt_path")["dml_config"]
        except ValueError as error:
            sys.exit(str(error))
        nodes = {group: config[group] for group in GROUPS}
    elif not any(a.startswith(("-h", "--h", "--v", "--info", "--c")) for a in arguments):
        sys.exit("ckpt_path=FILE is needed: a best.ckpt or last.ckpt that train.py wrote")
    for group, node in nodes.items():
        ConfigStore.instance().store(group=group, name="as_trained", node=node)
