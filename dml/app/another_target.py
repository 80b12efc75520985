"""`optimizer._target_=torch.optim.RAdam`: what a YAML has for one class, and the class that the command chooses lacks.

So it is where the command chooses the loss inside of another: `method=abe loss@loss.loss=nra`.
"""

import re
import typing
from collections.abc import Sequence
from dataclasses import fields
from pydoc import ErrorDuringImport

from omegaconf import DictConfig, OmegaConf, open_dict

from dml.app.schema import Locate, parameters_of, shown
from dml.app.settings import Part, Training


def leave_out(cfg: DictConfig, overrides: Sequence[str], locate: Locate) -> list[str]:
    """Take out of each group whose `_target_` the command line sets the keys that this target does not take.

    And of each part inside of a group that the command line chooses (`loss@loss.loss=nra`).

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
    chosen: dict[str, Part] = {str(name).partition("@")[2]: Part() for name in typed if "@" in str(name)}
    for group, hint in typing.get_type_hints(Training, include_extras=True).items():
        part = next((rule for rule in typing.get_args(hint)[1:] if isinstance(rule, Part)), None)
        if part is not None and f"{group}._target_" in typed:
            chosen[group] = part
    for group, part in chosen.items():
        node = OmegaConf.select(cfg, group, throw_on_resolution_failure=False)
        if not isinstance(node, DictConfig) or "_target_" not in node:
            continue
        try:
            call = locate(node._target_)
        except ErrorDuringImport:  # `check_config` tells
            continue
        if not callable(call):
            continue
        known, open_ended = parameters_of(call)
        beside = {field.name for field in fields(part.beside)} if part.beside is not None else set()
        # Who takes any key hands it on; create_backbone's are those of no network.
        given = {str(key) for key in node} - {"_target_", *known, *beside}
        for key in given if group == "backbone" or not open_ended else ():
            if not any(f"{name}.".startswith(f"{group}.{key}.") for name in typed):
                value = node[key]
                with open_dict(cfg):
                    del node[key]
                if value is not None:
                    told.append(f"{group}.{key}={shown(value)} is left out: {node._target_} takes none")
    return sorted(told)
