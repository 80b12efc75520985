"""Reading a checkpoint: plain data only, and one clear line when it is not one of ours."""

from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore

from dml.app.paths import checkpoint_in
from dml.app.trust import distrust

# What `evaluate.py` takes from the checkpoint unless told otherwise.
GROUPS = ("data", "transform", "evaluator", "loader")
# What it has from elsewhere, and never takes from there.
_UNUSED = ("trainer", "logger", "callbacks", "progress_bar")


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """Load a checkpoint of this framework, without running any code that it may hold.

    Args:
        path: the file, or the folder of its run.
        key: config key to name in errors.

    Raises:
        ValueError: the file is missing, truncated, or not a checkpoint of this framework.
    """
    path = checkpoint_in(path, key)
    try:
        # Mapped: who asks for the step of a checkpoint does not read its weights.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its unpickler or its zip reader meets
        raise ValueError(
            f"{key}={path} cannot be read as a checkpoint (truncated, or another kind of file): "
            f"{(str(error) or type(error).__name__).split('. ')[0]}"
        ) from error
    if not isinstance(checkpoint, dict) or not {"dml_config", "state_dict", "global_step"} <= checkpoint.keys():
        raise ValueError(f"{key}={path} is no checkpoint of a run of train.py: it carries no config")
    config = checkpoint["dml_config"]
    if not isinstance(checkpoint["state_dict"], dict) or not isinstance(checkpoint["global_step"], int):
        raise ValueError(f"{key}={path} is no checkpoint of a run of train.py: it carries no weights")
    if not isinstance(config, dict) or not all(isinstance(config.get(group), dict) for group in GROUPS):
        raise ValueError(f"{key}={path} is no checkpoint of a run of train.py: its config has no {', '.join(GROUPS)}")
    return checkpoint


def read_to_evaluate(path: Path, trust: bool, key: str = "ckpt_path") -> dict[str, Any]:
    """Load a checkpoint of which parts are to be made.

    Images are not cached because a checkpoint says so: it would also say in which folder.

    Args:
        path: the file, or the folder of its run.
        trust: also take parts that could run code.
        key: to name in errors.

    Returns:
        The checkpoint, its config without what evaluation has from elsewhere; `trainer` holds the plain values of the
        trainer that trained.

    Raises:
        ValueError: it cannot be used, or its config could run code and there is no trust.
    """
    checkpoint = read_checkpoint(path, key)
    config = {key: value for key, value in checkpoint["dml_config"].items() if key not in _UNUSED}
    if not trust:
        distrust(config, f"{key}={path}")
        # It says neither that files are written nor where.
        elsewhere = {"unpacked_dir": "data/unpacked"} if "unpacked_dir" in config["data"] else {}
        config["data"] = {**config["data"], "cache": "none", **elsewhere}
    trainer = checkpoint["dml_config"].get("trainer")
    plain = {
        str(key): value
        for key, value in (trainer if isinstance(trainer, dict) else {}).items()
        if isinstance(value, str | int | float | None)
    }
    return {**checkpoint, "dml_config": config, "trainer": plain}


def data_to_test(data: dict[str, Any], told: set[str]) -> dict[str, Any]:
    """The data group of an evaluation: where the command line names images all their classes are tested.

    With data.train_fraction beside data.root only those that `load` would test are.

    Args:
        data: the group as it was composed: the checkpoint's with what the command line says.
        told: keys that the command line gives, as data.root.

    Raises:
        ValueError: the command line gives training images alone.
    """
    whole = {"dml.data.table.load": "data.file", "dml.data.hf.load": "data.name"}.get(str(data.get("_target_")))
    if whole in told and "data.train_fraction" not in told:
        return {**data, "train_fraction": None}
    given = {key for key in ("root", "train_root", "test_root") if f"data.{key}" in told and data.get(key) is not None}
    if data.get("_target_") != "dml.data.folder.load" or not given:
        return data
    if given == {"train_root"}:
        raise ValueError("data.train_root is given alone: evaluation needs data.root=DIR or data.test_root=DIR")
    # What the checkpoint says of other folders does not count beside these.
    data = {**data, **{key: None for key in ("root", "train_root", "test_root") if key not in given}}
    if "train_root" in given or ("root" in given and "data.train_fraction" in told):
        return data
    left = {key: value for key, value in data.items() if key not in ("train_root", "train_fraction")}
    return {**left, "_target_": "dml.data.folder.load_to_test"}


def offer_trained_config(path: Path | None, trust: bool) -> None:
    """Offer the config inside of ckpt_path=FILE to Hydra, as choice `as_trained` of each group.

    Then `evaluator.ks=[1]` or `data=folder data.root=DIR` on the command line change just that.

    Args:
        path: of the checkpoint; None, where none is needed.
        trust: as the command line says.

    Raises:
        ValueError: the checkpoint cannot be used.
    """
    nodes: dict[str, Any] = {group: {} for group in GROUPS}
    if path is not None:
        config = read_to_evaluate(path, trust)["dml_config"]
        nodes = {group: config[group] for group in GROUPS}
    for group, node in nodes.items():
        ConfigStore.instance().store(group=group, name="as_trained", node=node)
