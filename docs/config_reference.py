"""Writes the pages of all config keys from the config files and the signatures that they are held against."""

import itertools
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from hydra.utils import get_object
from loss_pages import described

from dml.app.schema import describe, parameters_of, shown
from dml.app.settings import Evaluation, Part, Training

CONF = Path(__file__).parents[1] / "conf"
# In the order in which a reader meets them: images -> network -> loss -> training -> results.
_ORDER = (
    "data transform loader backbone embedder model loss sampler method optimizer scheduler trainer protocol evaluator "
    "logger callbacks experiment"
)
_GROUPS = _ORDER.split()
_HEAD = """# All config keys

These pages are made from the files under `conf/` and the signatures of the classes that they name, when the
documentation is built. `python train.py --cfg job` prints the keys and values of a run.

A group has one file for each choice: `loss=triplet` takes `conf/loss/triplet.yaml`. A key is written with its group:
`loss.margin=0.1`. Types and ranges are checked before the data is read.
"""


def write(folder: Path) -> None:
    """Write index.md and a page for each group."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {group: "\n".join([f"# {group}\n", *_choices(group)]) for group in _GROUPS}
    tree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *_GROUPS, "```"])
    pages["index"] = "\n".join(
        [_HEAD, tree, "", *_top("train.py", "train", Training), *_top("evaluate.py", "evaluate", Evaluation)]
    )
    for name, text in pages.items():
        file = folder / f"{name}.md"
        if not file.exists() or file.read_text() != text:  # Sphinx builds changed pages again
            file.write_text(text)


def _top(program: str, file: str, schema: type) -> Iterator[str]:
    """The keys that stand beside the groups."""
    text = (CONF / f"{file}.yaml").read_text()
    content, hints = yaml.safe_load(text), typing.get_type_hints(schema, include_extras=True)
    yield f"## {program}\n"
    yield from _table(
        (f"{key}.{name}" if name else key, value, hint, _comment(text, name or key))
        for key, given in content.items()
        if key in hints
        for name, value, hint in _members(given, hints[key])
    )


def _members(value: Any, hint: Any) -> Iterator[tuple[str | None, Any, Any]]:
    if not is_dataclass(hint) or not isinstance(value, dict):
        yield None, value, hint
        return
    hints = typing.get_type_hints(hint, include_extras=True)
    for name, one in value.items():
        yield name, one, hints[name]


def _choices(group: str) -> Iterator[str]:
    """A section for each file of a group."""
    part = next((rule for rule in get_args(_hint(group))[1:] if isinstance(rule, Part)), Part())
    others = [file.read_text() for file in sorted((CONF / group).glob("*.yaml"))]
    for file in sorted((CONF / group).glob("*.yaml")):
        text = file.read_text()
        content = yaml.safe_load(text) or {}
        yield f"## {group}={file.stem}\n"
        yield from _head(text)
        inherited = (CONF / group / "default.yaml").read_text() if "default" in content.get("defaults", []) else ""
        target = content.pop("_target_", (yaml.safe_load(inherited) or {}).get("_target_"))
        if target:
            yield f"`{target}`\n"
        if group in ("model", "method", "experiment"):
            yield "```yaml\n" + _settings(text) + "\n```\n"
        else:
            known = _hints(target, part) if target else _own(group)
            texts = [text, inherited, *_arguments(target), *others]
            rows = [(k, v, known.get(k, Any)) for k, v in content.items() if k != "defaults"]
            yield from _table((f"{group}.{k}", v, hint, _explained(k, texts)) for k, v, hint in rows)
            yield from _more(group, target, part, {*content, *(yaml.safe_load(inherited) or {})} | _wrapped(content))


def _wrapped(content: dict[str, Any]) -> set[str]:
    """The keys that a file fills with choices of a group: `loss` of `/loss@loss: contrastive`."""
    return {key.partition("@")[2].partition(".")[0] for one in content.get("defaults", []) for key in one if "@" in key}


def _more(group: str, target: str | None, part: Part, there: set[str]) -> Iterator[str]:
    """What else the target takes."""
    taken = parameters_of(get_object(target))[0] if target else {}
    if more := [name for name in taken if name not in {*there, *part.given}]:
        yield f"More keys, which need a plus (`+{group}.{more[0]}=...`): {', '.join(f'`{name}`' for name in more)}.\n"


def _explained(key: str, texts: Iterable[str]) -> str:
    """The first comment on a key: of its file, of what the file begins with, of the docstring, of files beside it."""
    return next(filter(None, (_comment(text, key) for text in texts)), "")


def _arguments(target: str | None) -> Iterator[str]:
    """The arguments that the docstring of one of our own classes explains, as a file would have them."""
    if target and target.startswith("dml."):
        call = get_object(target)
        for one in call.__mro__ if isinstance(call, type) else [call]:
            said = {name: text for name, text in described(one).items() if text and not text.startswith("as of ")}
            yield "".join(f"{name}: # {text}\n" for name, text in said.items())


def _hint(group: str) -> Any:
    return typing.get_type_hints(Training, include_extras=True).get(group)


def _own(group: str) -> dict[str, Any]:
    """Keys of a group that is a dataclass of the program's own."""
    hint = _hint(group)
    return typing.get_type_hints(hint, include_extras=True) if is_dataclass(hint) else {}


def _hints(target: str, part: Part) -> dict[str, Any]:
    own = {field.name: part.beside for field in fields(part.beside)} if part.beside else {}
    beside = typing.get_type_hints(part.beside, include_extras=True) if own else {}
    of_target = {name: parameter.annotation for name, parameter in parameters_of(get_object(target))[0].items()}
    return {**of_target, **dict(part.ranges), **beside}


def _table(rows: Iterable[tuple[str, Any, Any, str]]) -> Iterator[str]:
    lines = [
        f"| `{key}` | `{_cell(_default(value))}` | {_cell(_type(hint, value))} | {_linked(_cell(said))} |"
        for key, value, hint, said in rows
    ]
    if lines:
        yield "\n".join(["| key | value | type and range | what it does |", "|---|---|---|---|", *lines]) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_default(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_default, value)) + "]"
    return shown(value)


def _type(hint: Any, value: Any) -> str:
    if hint is Any:  # an argument that is passed on: what its value is
        hint = type(value)
    said = describe(hint)
    return (
        f"{said} or null" if said and value is None and "null" not in said else said
    )  # null: filled in by the program


def _linked(said: str) -> str:
    """Pages of docs/ as links, seen from docs/reference/config."""
    return re.sub(r"docs/([\w/]+\.md)", r"[docs/\1](../../\1)", said.replace("None:", "null:"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _head(text: str) -> Iterator[str]:
    """The comment that a file begins with: paragraphs, and its commands in boxes."""
    found = re.match(r"(?:#.*\n)*", text)
    assert found is not None
    blocks: list[tuple[bool, str]] = []  # whether it is a command
    for line in found[0].splitlines():
        said = line.removeprefix("#").removeprefix(" ")
        command = re.fullmatch(r" *(?:(.*:) +)?(python .*)", said)
        if command and command[1]:
            blocks.append((False, command[1]))
        if command or (said.startswith(" ") and blocks and blocks[-1][0]):
            blocks.append((True, command[2] if command else said))
        elif "@package" not in said:
            goes_on = blocks and not blocks[-1][0] and not re.match(r"[A-Z][\w ]*: ", said)
            blocks.append((False, f"{blocks.pop()[1]} {said}" if goes_on else said))
    for is_command, part in itertools.groupby(blocks, key=lambda block: block[0]):
        lines = [said for _, said in part]
        if is_command:
            yield "\n".join(["```", *lines, "```\n"])
        else:
            yield "".join(_linked(line.replace("<", "&lt;").replace("*", "\\*")) + "\n\n" for line in lines)


def _settings(text: str) -> str:
    return re.sub(r"\A(?:#.*\n)*", "", text).rstrip()


def _comment(text: str, key: str) -> str:
    found = re.search(rf"^ *{re.escape(key)}:[^#\n]*#[ \t]*(.*)$", text, flags=re.M)
    return found[1].lstrip("| ") if found else ""
