"""`optimizer._target_=torch.optim.RAdam`: what the choice's YAML has for its own class, and another does not take."""

import re
import typing
from collections.abc import Sequence
from dataclasses import fields
from pydoc import ErrorDuringImport

from omegaconf import DictConfig, open_dict

from dml.app.schema import Locate, parameters_of, shown
from dml.app.settings import Part, Training


def leave_out(cfg: DictConfig, overrides: Sequence[str], locate: Locate) -> list[str]:
    """Take out of each group whose `_target_` the command line sets the keys that this target does not take.

    Keys that the command line sets itself stay: if they are wrong, `check_config` says so.

    Args:
        cfg: composed config; changed.
        overrides: of the command line.
        locate: finds what a `_target_` names.

    Returns:
        A line for each key that was left out.
    """
    typed = {re.split(r"[=:]", override.lstrip("+~"))[0] for override in overrides}
    told = []
    for group, hint in typing.get_type_hints(Training, include_extras=True).items():
        part = next((rule for rule in typing.get_args(hint)[1:] if isinstance(rule, Part)), None)
        if part is None or f"{group}._target_" not in typed:
            continue
        try:
            call = locate(cfg[group]._target_)
        except ErrorDuringImport:  # `check_config` tells
            continue
        if not callable(call):
            continue
        known, open_ended = parameters_of(call)
        beside = {field.name for field in fields(part.beside)} if part.beside is not None else set()
        # Who takes any key hands it on; create_backbone's are those of no network.
        for key in [] if open_ended and group != "backbone" else cfg[group].keys() - {"_target_", *known, *beside}:
            if not any(f"{name}.".startswith(f"{group}.{key}.") for name in typed):
                value = cfg[group][key]
                with open_dict(cfg):
                    del cfg[group][key]
                if value is not None:
                    told.append(f"{group}.{key}={shown(value)} is left out: {cfg[group]._target_} takes none")
    return sorted(told)
