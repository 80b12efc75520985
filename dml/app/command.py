"""The command line: put so that Hydra reads it as it was typed, and whatever Hydra refuses said in one line.

Imports Hydra only: a mistake is told before torch is loaded.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

from hydra._internal import utils
from hydra.errors import CompactHydraException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dml.app.errors import OtherRunException
from dml.app.launch import one_folder
from dml.app.paths import checkpoint_in, readable, texts_of
from dml.app.schema import near, no_key
from dml.app.sweep import SweepNamedByCommand
from dml.app.unloaded import locate_unloaded
from dml.printable import printable, tolerant_output

_ROOT = Path(__file__).resolve().parents[2]


def run_command(main: Callable[[], Any], prepare: Callable[[list[str]], None] | None = None) -> None:
    """Run a function of hydra.main on the command line, and end with one line where that cannot be.

    Args:
        main: what hydra.main made.
        prepare: is given the arguments first; raises ValueError where they will not do.
    """
    try:
        import_module("dml.locks")
    except ImportError as error:
        sys.exit(str(error))
    tolerant_output()
    try:
        overrides, flags = arranged(sys.argv[1:])
        overrides += one_folder(overrides)
        if prepare is not None:
            prepare([*overrides, *flags])
    except ValueError as error:
        sys.exit("\n".join(map(printable, str(error).splitlines())))
    sys.argv[1:] = [*overrides, *flags]
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        main()
        return
    utils.run_and_report = lambda func: func()  # Hydra hands its errors on instead of printing them
    try:
        main()
    except HydraException as error:
        SweepNamedByCommand.say_where()  # of a sweep in which a job failed
        sys.exit(f"{said(error)}\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.")
    except OSError as error:  # of Hydra, which makes the folder
        files = {Path(frame.filename) for frame in extract_tb(error.__traceback__)} - {Path(__file__)}
        if any(file.is_relative_to(_ROOT / "dml") for file in files):
            raise
        sys.exit(f"{error.filename}: {error.strerror}. Give another hydra.run.dir=DIR (a sweep: hydra.sweep.dir=DIR)")


def is_zero_shot(arguments: list[str]) -> bool:
    """Whether a command line of evaluate.py names a network and no checkpoint."""
    named = any(one.startswith(("model=", "backbone=", "backbone.")) for one in arguments)
    return named and not any(one.startswith("ckpt_path=") for one in arguments)


def checkpoint_given(arguments: list[str]) -> Path | None:
    """The checkpoint that ckpt_path names on a command line as Hydra reads it, of several the first.

    None where only help is asked for.

    Raises:
        ValueError: there is none.
    """
    given = [texts_of(one) for one in arguments if one.startswith("ckpt_path=")]
    if not given and any(one.startswith(("-h", "--h", "--v", "--info", "--c")) for one in arguments):
        return None
    if not given or not given[-1]:
        raise ValueError(
            "ckpt_path=FILE is needed: a best.ckpt or last.ckpt that train.py wrote, or the folder of its run; "
            "ckpt_path=[A,B] evaluates several side by side. A pretrained network as it is: model=NAME"
        )
    paths = [Path(one).expanduser() for one in given[-1]]
    found = [checkpoint_in(path, "ckpt_path") for path in paths]
    if found != paths:
        print(f"Evaluating {', '.join(map(str, found))}", flush=True)
    return found[0]


def arranged(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The overrides of a command line as Hydra reads them, and its flags, which may stand anywhere.

    Raises:
        ValueError: an argument is neither.
    """
    known, unknown = utils.get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        setting = unknown[0].lstrip("-")
        raise ValueError(
            f"{unknown[0]} is no option. Settings are given without dashes, as {setting.partition('=')[0]}=VALUE; "
            "--help lists them, and the options"
        )
    flags = list(arguments)
    for override in known.overrides:
        flags.remove(override)
        if not re.match(r"[^=]+=|~", override):
            raise ValueError(
                f"{override} is no setting: it must be KEY=VALUE, without blanks around the =; a VALUE with blanks or "
                "characters of the shell stands in quotes, as 'data.root=my images'"
            )
    flags = [re.sub(r"=~(?=/|$)", lambda _: f"={Path.home()}", flag) for flag in flags]
    sweep = known.multirun or "hydra.mode=MULTIRUN" in known.overrides
    for override in known.overrides:
        _refuse_no_choice(override)
    overrides = [one for override in known.overrides for one in _loggers(override)]
    return [readable(override, sweep=sweep) for override in overrides], flags


def _refuse_no_choice(override: str) -> None:
    group, _, value = override.lstrip("+").partition("=")
    folder = _ROOT / "conf" / group
    if re.fullmatch("null|true|false", value, re.IGNORECASE) and group and folder.is_dir():
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ValueError(f"{group}={value} is no choice: there is {near(value, options)}")


def _loggers(override: str) -> list[str]:
    """logger=[wandb,csv] in the words of Hydra, which would put both into one node."""
    found = re.fullmatch(r"logger=\[([\w, ]*)\]", override)
    if found is None:
        return [override]
    names = [name.strip() for name in found[1].split(",") if name.strip()]
    return ["logger=none", *(f"+logger@logger.{name}={name}" for name in names)]


def said(error: HydraException) -> str:
    """An error of Hydra's in one line, which names the key and what there is; one of ours as it is."""
    cause = error.__cause__
    if type(error) in (CompactHydraException, OtherRunException):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} is no choice: there is {near(choice, error.options)}"
    found = re.match(r"Could not override '([^']*)'", str(error))
    if found and isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        return _no_such_key(found[1], str(cause.key), cause.parent_node, str(error))
    several = r"(?:Multiple values for )?(\S+?)(?:\. To override a value| appears more than once in the final defaults)"
    if twice := re.match(several, str(error)):
        return f"{twice[1]} is in the config already: {twice[1]}=CHOICE, without a plus, chooses another"
    lines = [line.strip() for line in str(error).split("\nConfig search path")[0].splitlines()]
    text = " ".join(line for line in lines if line and "hydra.cc" not in line)
    return text if cause is None else f"{text}: {str(cause).splitlines()[0]}"


def _no_such_key(override: str, key: str, parent: DictConfig, error: str) -> str:
    above = parent._get_full_key(None)
    name = f"{above}.{key}" if above else key
    there = [str(one) for one in parent if str(one) not in ("_target_", "hydra")]
    target = OmegaConf.select(parent, "_target_") if above else None
    more = inspect.signature(locate_unloaded(str(target))).parameters if target else ()
    if key in more and name == override:
        return f"{name} is not in the config yet: add it with a plus, {error.partition(' your config use ')[2]}"
    groups = () if above else sorted(path.name for path in (_ROOT / "conf").iterdir() if path.is_dir())
    return no_key(name, list(dict.fromkeys([*there, *groups])))
