"""A config held against the signatures of what it names: unknown keys, wrong types, values out of range; all of them.

There is no second list of the parts' keys: a group with a `_target_` takes what that takes (`loss.alpha` of
`alpha: Annotated[float, Gt(0)]`), and the dataclasses of dml.app.settings say the rest in the same way.
"""

import dataclasses
import difflib
import functools
import inspect
import pydoc
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MinLen
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dml.app.settings import Part


class Problem(NamedTuple):
    """A key that cannot stay as it is: its dotted name, its value, and what the user is told."""

    key: str
    value: Any
    said: str


class _Missing:
    def __repr__(self) -> str:
        return "???"


MISSING = _Missing()  # in the place of a value that cannot be had
_ALONE = Part()
Locate = Callable[[str], Any]  # a dotted name -> what it names, or None


def resolved(cfg: DictConfig) -> tuple[dict[str, Any], list[Problem], set[str]]:
    """A config as plain data, what cannot be resolved in it, and the keys whose values are those of other keys."""
    problems: list[Problem] = []
    taken: set[str] = set()

    def plain(node: Any, key: str) -> Any:
        if isinstance(node, DictConfig):
            return {name: at(node, name, ".".join(filter(None, [key, str(name)]))) for name in node}
        if isinstance(node, ListConfig):
            return [at(node, i, f"{key}.{i}") for i in range(len(node))]
        return node

    def at(parent: Any, name: Any, key: str) -> Any:
        try:
            if OmegaConf.is_interpolation(parent, name):
                taken.add(key)
            if OmegaConf.is_missing(parent, name):
                problems.append(Problem(key, MISSING, f"{key} is missing: give {key}=..."))
                return MISSING
            return plain(parent[name], key)
        except (OmegaConfBaseException, RecursionError) as error:
            said = (str(error) or "it refers to itself").splitlines()[0]
            problems.append(Problem(key, MISSING, f"{key} cannot be resolved: {said}"))
            return MISSING

    return plain(cfg, ""), problems, taken


def problems_of(config: Mapping[str, Any], schema: type, locate: Locate = pydoc.locate) -> list[Problem]:
    """What is wrong with a config, a dataclass of dml.app.settings being its schema; `locate` finds a `_target_`."""
    return list(_arguments("", config, schema, locate))


def _arguments(
    prefix: str, node: Mapping[str, Any], call: Callable[..., Any], locate: Locate, part: Part = _ALONE
) -> Iterator[Problem]:
    """The keys of a node as arguments of a call."""
    parameters, open_ended = parameters_of(call)
    for key, value in node.items():
        name = f"{prefix}{key}"
        if key in part.given:
            yield Problem(name, value, f"{name} cannot be set: the program does")
        elif key not in parameters and not open_ended:
            yield Problem(name, value, no_key(name, [known for known in parameters if known not in part.given]))
        elif value is not MISSING and not (value is None and key in part.later):
            hint = parameters[key].annotation if key in parameters else Any
            yield from _value(name, value, part.ranges.get(key, hint), locate, part.later)
    for key, parameter in parameters.items():
        if (parameter.default is parameter.empty or key in part.needs) and key not in node and key not in part.given:
            said = f"{prefix}{key} is missing: it must be {describe(part.ranges.get(key, parameter.annotation))}"
            yield Problem(f"{prefix}{key}", None, said)


def no_key(name: str, known: Sequence[str]) -> str:
    """That a dotted name is no key, and which there are."""
    return f"{name} is no key: there is {near(name.rpartition('.')[2], known)}"


def near(word: str, known: Sequence[str]) -> str:
    """The known word that a word was meant to be; all, where none is like it."""
    return ", ".join(difflib.get_close_matches(word, known, n=1) or known) or "none"


def _value(name: str, value: Any, hint: Any, locate: Locate, later: tuple[str, ...] = ()) -> Iterator[Problem]:
    """later: keys that may be null in a part that is the value, as in the part around it."""
    part = next((rule for rule in get_args(hint)[1:] if isinstance(rule, Part)), None)
    if part is not None:
        yield from _part(name, value, part, locate)
    elif is_dataclass(hint) and isinstance(value, dict):
        yield from _arguments(f"{name}.", value, typing.cast(type, hint), locate)
    elif get_origin(hint) is dict and isinstance(value, dict):
        for key, one in value.items():
            yield from _value(f"{name}.{key}", one, get_args(hint)[1], locate)
    elif get_origin(hint) is list and is_dataclass(get_args(hint)[0]) and isinstance(value, list):
        for i, one in enumerate(value):
            yield from _value(f"{name}.{i}", one, get_args(hint)[0], locate)
    elif not fits(value, hint):
        yield Problem(name, value, f"{name}={shown(value)} is not possible: it must be {describe(hint)}")
    else:
        for key, one in parts_in(value):  # an argument that is a part itself, or holds some
            yield from _part(f"{name}{key}", one, Part(later=later), locate)


def parts_in(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an argument, with what follows its name in theirs: itself, or those in a list or by names."""
    if hasattr(value, "keys"):
        if "_target_" in value:
            yield "", value
            return
        inner = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, Sequence) and not isinstance(value, str) else []
    for key, one in inner:
        yield from ((f".{key}{rest}", part) for rest, part in parts_in(one))


def _part(name: str, node: Any, part: Part, locate: Locate) -> Iterator[Problem]:
    if (not node and part.optional) or (isinstance(node, dict) and node.get("_target_") is MISSING):
        return
    if part.several and isinstance(node, dict) and "_target_" not in node:
        for key, one in node.items():
            yield from _part(f"{name}.{key}", one, dataclasses.replace(part, several=False, optional=False), locate)
        return
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        yield Problem(name, node, f"{name}={shown(node)} is not possible: it must have a _target_, a class or function")
        return
    target = f"{name}._target_={shown(node['_target_'])}"
    try:
        call = locate(node["_target_"])
    except pydoc.ErrorDuringImport as error:
        yield Problem(name, node, f"{target} cannot be imported: {str(error.value).partition(chr(10))[0]}")
        return
    if not callable(call):
        yield Problem(name, node, f"{target} is no class or function that can be found")
        return
    own = parameters_of(part.beside)[0] if part.beside is not None else {}
    beside = {key: value for key, value in node.items() if key in own}
    if part.beside is not None:
        yield from _arguments(f"{name}.", beside, part.beside, locate)
    rest = {key: value for key, value in node.items() if key not in own and key != "_target_"}
    yield from _arguments(f"{name}.", rest, call, locate, part)


@functools.cache
def parameters_of(call: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of a call with their types, and whether it takes others too."""
    try:
        found = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # some that are written in C have none
        return {}, True
    try:
        hints = typing.get_type_hints(call.__init__ if isinstance(call, type) else call, include_extras=True)  # type: ignore[misc]
    except Exception:  # types that are there for type checkers only
        hints = {}
    named = {
        p.name: p.replace(annotation=hints.get(p.name, p.annotation))
        for p in found
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in found)
    return named, open_ended


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data is of a type, and in its range. What no plain data can be, a node with a `_target_` may."""
    origin, of = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, of[0]) and all(_keeps(value, rule) for rule in _flat(of[1:]))
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in of)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in of)
    if hint is float:  # finite, and not so large that it is no float
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if hint in (int, str, bool, NoneType, None):
        return type(value) is (NoneType if hint is None else hint)
    if origin is tuple:
        of = (of[0],) * len(value) if of[-1:] == (...,) and isinstance(value, list) else of
        return isinstance(value, list) and len(value) == len(of) and all(map(fits, value, of))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(fits(k, of[0]) and fits(v, of[1]) for k, v in value.items())
    if isinstance(origin, type) and issubclass(list, origin):
        return isinstance(value, list) and all(fits(one, of[0]) for one in value)
    if not _is_class(hint):
        return True  # Any, or what cannot be told
    return issubclass(type(value), hint) or (isinstance(value, dict) and "_target_" in value)


def _is_class(hint: Any) -> bool:
    # Any is one since Python 3.11, and list[int] until then.
    return isinstance(hint, type) and get_origin(hint) is None and hint not in (Any, object, inspect.Parameter.empty)


def _flat(rules: Sequence[Any]) -> list[Any]:
    return [one for rule in rules for one in (rule if isinstance(rule, GroupedMetadata) else [rule])]


def _keeps(value: Any, rule: Any) -> bool:
    match rule:
        case Gt(bound):
            return value > bound
        case Ge(bound):
            return value >= bound
        case Lt(bound):
            return value < bound
        case Le(bound):
            return value <= bound
        case MinLen(least):
            return len(value) >= least
    return True


def describe(hint: Any) -> str:
    """A type in words: "a number greater than 0", "one of all, semi_hard, hard"."""
    origin, of = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if any(isinstance(rule, Part) for rule in of[1:]):
            return "a group with a _target_"
        what, rest, each = describe(of[0]).partition(", each")  # a list
        return " ".join(filter(None, [what, _range(_flat(of[1:]))])) + rest + each
    if origin in (Union, UnionType):
        choices = tuple(choice for one in of if get_origin(one) is Literal for choice in get_args(one))
        of = (*(one for one in of if get_origin(one) is not Literal), *([Literal[choices]] if choices else []))
        texts = list(dict.fromkeys(describe(one) for one in of))
        plain = [text for text in texts if not text.startswith("a group with")] or texts
        return " or ".join(sorted(plain, key="null".__eq__))
    if origin is Literal:
        return ("one of " if len(of) > 1 else "") + ", ".join(shown(one) for one in of)
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if hint in named:
        return named[hint]
    if origin is tuple:
        if of[-1:] == (...,):
            return f"a list, each {describe(of[0])}"
        return f"a list of {len(of)}: {', '.join(map(describe, of))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"names, each with {describe(of[1])}"
    if isinstance(origin, type) and issubclass(list, origin):
        return f"a list, each {describe(of[0])}"
    if is_dataclass(hint):
        return f"a group of {', '.join(field.name for field in fields(hint))}"
    if hint is dict:
        return "a group of keys"
    return f"a group with the _target_ of {_a(hint.__name__)}" if _is_class(hint) else "anything"


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _range(rules: Sequence[Any]) -> str:
    if [type(rule) for rule in rules] == [Ge, Le]:
        return f"from {rules[0].ge} to {rules[1].le}"
    said = []
    for rule in rules:
        match rule:
            case Gt(bound):
                said.append(f"greater than {bound}")
            case Ge(bound):
                said.append(f"of at least {bound}")
            case Lt(bound):
                said.append(f"less than {bound}")
            case Le(bound):
                said.append(f"at most {bound}")
            case MinLen(least):
                said.append(f"of {least} or more")
    return " and ".join(said)


def shown(value: Any) -> str:
    """A value as a command line has it, in one line; text that looks like something else in quotes."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = str(value)
    if isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    if isinstance(value, str) and (not text.isprintable() or not text or _looks_otherwise(text)):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _looks_otherwise(text: str) -> bool:
    try:
        return bool(float(text)) or True
    except ValueError:
        return text.lower() in ("true", "false", "null")
