"""Keys that take a path, and how a path is written on the command line. Imports Hydra only."""

import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

# The last part of a dotted key says that it takes a path, in the config and in parts of one's own.
_PATH = re.compile(r"(\w+_)?(root|dir|path|file|folder)|resume")
# Of the values of a sweep: what is in quotes, commas too, or what there is up to the next comma.
_PIECE = re.compile(r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")\s*(?=,|$)|[^,]+""")
_FUNCTION = re.compile(r"(choice|range|glob|sort|shuffle|tag)\(.*\)")


def takes_path(key: str) -> bool:
    """Whether the value of a dotted key is a file or a folder."""
    return bool(_PATH.fullmatch(key.rpartition(".")[2]))


def expand_home(cfg: DictConfig) -> None:
    """Put the home folder in the place of ~, in all keys that take a path."""
    keys: list[Any] = list(cfg)
    for key in keys:  # of a callback's argument also numbers
        if OmegaConf.is_interpolation(cfg, key) or OmegaConf.is_missing(cfg, key):
            continue
        value = cfg[key]
        if isinstance(value, DictConfig):
            expand_home(value)
        elif isinstance(value, str) and value.startswith("~") and takes_path(str(key)):
            cfg[key] = str(Path(value).expanduser())


def checkpoint_in(path: Path, key: str) -> Path:
    """The checkpoint that a path means: the file, or in the folder of a run its best.ckpt, else its last.ckpt.

    Raises:
        ValueError: there is none; names the key.
    """
    if path.is_dir():
        files = [path / below / f"{name}.ckpt" for name in ("best", "last") for below in ("checkpoints", "")]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise ValueError(f"{key}={path} is a folder without checkpoints: give that of a run, or a best.ckpt in it")
        return found
    if not path.is_file():
        raise ValueError(f"{key}={path} does not exist")
    return path


def quoted(text: str) -> str:
    """Any text as a value that Hydra reads as that text."""
    return QuotedString(text, Quote.single).with_quotes()


def texts_of(override: str) -> list[str]:
    """The value of an override that Hydra can read, or those of a list, without their quotes."""
    value = OverridesParser.create().parse_override(override).value()
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def readable(override: str, *, sweep: bool) -> str:
    """An override that Hydra reads as it was typed: its grammar has a meaning for many characters, and refuses others.

    The value of a key that takes a path is the path, in quotes where they are needed and with the home folder for ~; so
    is any value that the grammar refuses, as text. What Hydra can read by itself stays to the letter: null, quotes,
    ${...}, and in a sweep functions (glob(*)) and commas, unless a file or folder has that very name.

    Raises:
        ValueError: it has several values, and this is no sweep.
    """
    key, equals, value = override.partition("=")
    if not equals or not value:
        return override
    path, parsed = takes_path(key), _parsed(override)
    sweep = sweep and not key.startswith("hydra.")  # over these Hydra sweeps in no case
    if parsed is not None and parsed.is_sweep_override() and not (path and "," in value and not sweep):
        if not sweep:
            as_list = f"a list is {key}=[{value}], " if "." in key else ""
            raise ValueError(f"{override} has several values: {as_list}a sweep over them needs -m")
        if not path or _FUNCTION.fullmatch(value):
            return override
    elif parsed is not None and not path:
        return override
    pieces = _PIECE.findall(value) if path and sweep and not Path(value).exists() else [value]
    read = [_piece(key, piece, path) for piece in pieces]
    return override if read == pieces else f"{key}={','.join(read)}"


def _piece(key: str, value: str, path: bool) -> str:
    if path and value.startswith("~"):
        value = str(Path(value).expanduser())
    parsed = _parsed(f"{key}={value}")
    if parsed is not None:
        found = parsed._value
        if found is None or isinstance(found, QuotedString | list | dict) or "${" in value:
            return value
        if isinstance(found, str) and (found == value.strip() or "\\" in value):  # it may have escaped by itself
            return value
    elif len(value) > 2 and value[0] == value[-1] and value[0] in "'\"":  # in quotes, and with such in it
        value = value[1:-1]
    return quoted(value)


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:  # why it cannot be read is of no use: it will be written in another way
        return None
