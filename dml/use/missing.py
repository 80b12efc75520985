"""Packages that only some commands need."""

from importlib import import_module
from typing import Any


def optional(module: str, extra: str, needed: str) -> Any:
    """Import a module of a package that is not always there.

    Args:
        module: its name.
        extra: of dml that installs it.
        needed: what needs it, for the message.

    Raises:
        ValueError: it is not installed; one line that says how to.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ValueError(f"{needed} needs the package {package}: pip install 'dml[{extra}]'") from error
