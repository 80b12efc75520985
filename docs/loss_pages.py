"""Writes the keys of each loss into its page under docs/losses, and the table of all into their index.

They come from signatures, docstrings and weights: `python docs/loss_pages.py` after a change. The test suite says when
they are not those of the code.
"""

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from hydra.utils import get_object
from torch import nn

from dml.app.schema import describe, parameters_of, shown

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "losses"
_SIZES = {"embedding_dim": (210, "d"), "num_classes": (11, "C")}  # stand for what a run fills in
_RESULTS = re.compile(
    r"^\| loss, (?P<setting>[^|]+?) \|(?P<head>.+)\|\n\|[-:|]+\|\n(?P<rows>(?:\|.+\|\n)+)", flags=re.M
)
_SECTION = re.compile(r"(<!-- keys -->\n).*?(<!-- end -->)", flags=re.S)


def written(page: Path) -> str:
    """A page with what the code says now between its marks."""
    made = _index() if page.stem == "index" else _keys(page.stem)
    return _SECTION.sub(lambda found: f"{found[1]}{made}{found[2]}", page.read_text())


def stems() -> list[str]:
    """The losses that have a page."""
    return sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "index")


def _config(stem: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "loss" / f"{stem}.yaml").read_text())
    return found


def _built(stem: str) -> nn.Module | None:
    """The loss with sizes that stand for those of a run; None of a loss that wraps others."""
    config = _config(stem)
    sizes = {name: size for name, (size, _) in _SIZES.items() if name in config and config[name] is None}
    if "groups" in config:
        sizes["groups"] = [_SIZES["embedding_dim"][0]] * len(config.get("ratios", [1, 1]))
    return None if "defaults" in config or "losses" in config else _class(stem)(**sizes)


def _class(stem: str) -> type[nn.Module]:
    found: type[nn.Module] = get_object(_config(stem)["_target_"])
    return found


def _keys(stem: str) -> str:
    config, call = _config(stem), _class(stem)
    arguments = described(call)
    lines = [f"`loss={stem}`, `{call.__module__}.{call.__name__}`\n"]
    parameters = parameters_of(call)[0]
    if parameters:
        lines += ["| key | default | type and range | what it is |", "|---|---|---|---|"]
    for name, parameter in parameters.items():
        default = config.get(name) if parameter.default is parameter.empty else parameter.default
        default = list(default) if isinstance(default, tuple) else default
        cells = [f"`{name}`", f"`{shown(default)}`", describe(parameter.annotation), arguments.get(name, "")]
        if default is None and parameter.default is parameter.empty:
            cells[1] = "filled in"
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, nn.Module):
            cells[1:3] = ["another loss", "a loss"]
        elif nn.Module in get_args(parameter.annotation):
            cells[1:3] = [
                ", ".join(f"`{next(iter(one.values()))}`" for one in config["defaults"][:-1]),
                "losses by name",
            ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    lines.append(f"\nImages of a class in a batch: {_least(stem)} or more. Own weights: {_weights(stem) or 'none'}.")
    lines.append(f"{'Works' if _of_anchors(call) else 'Does not work'} in a {{doc}}`memory`.\n")
    return "\n".join(lines + _measured(stem))


def _measured(stem: str) -> list[str]:
    """What docs/results.md has of a loss: a table, or nothing. Its tables of losses begin with `| loss, SETTING |`."""
    lines = []
    for found in _RESULTS.finditer((ROOT / "docs" / "results.md").read_text()):
        heads = [cell.strip() for cell in found["head"].split("|")]
        rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in found["rows"].splitlines()]
        rows = [row for row in rows if row[0] != "no head"]  # the baseline is no loss
        for place, row in enumerate(rows, 1):
            name, _, more = row[0].partition(",")
            if name in (stem, f"{stem}_pp"):
                named = dict(zip(heads, row[1:], strict=True))
                scores = f"{named['Recall@1']} | {named['MAP@R']} | {place} of {len(rows)}"
                lines.append(f"| {found['setting']}{',' * bool(more)}{more}{', ++' * (name != stem)} | {scores} |")
    if not lines:
        return []
    head = ["| measured on emoji, percent | Recall@1 | MAP@R | place by MAP@R |", "|---|---:|---:|---:|"]
    return [*head, *lines, "\nWhat was measured, and what it does not say: {doc}`../results`.\n"]


def _index() -> str:
    lines = ["| loss | images of a class | own weights | in a memory |", "|---|---|---|---|"]
    for stem in stems():
        loss, memory = _built(stem), "yes" if _of_anchors(_class(stem)) else "no"
        names = {name.split(".")[0] for name, _ in loss.named_parameters()} if loss else {"those inside"}
        lines.append(f"| [{stem}]({stem}.md) | {_least(stem)} | {', '.join(sorted(names))} | {memory} |")
    return "\n".join(lines) + "\n"


def _least(stem: str) -> int:
    return int(getattr(_built(stem) or _class(stem), "min_samples_per_class", 1))


def _of_anchors(call: type[nn.Module]) -> bool:
    return "anchors" in inspect.signature(call.forward).parameters


def described(call: Any) -> dict[str, str]:
    """What the docstring says of each argument."""
    text = inspect.cleandoc(call.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = {}
    for part in re.split(r"\n(?= {4}\w)", f"\n{text}")[1:]:
        names, _, said = part.strip().partition(": ")
        # The range has a column of its own.
        said = re.sub(r"(,? ?(> 0|0 or greater|0 to 1|from 0 to less than 1))+(?=[;.]|$)", "", " ".join(said.split()))
        found.update({name: said.strip(".; ") for name in names.split(", ")})
    return found


def _weights(stem: str) -> str:
    """The names of a loss's own weights, and their shapes in terms of d and C."""
    if (loss := _built(stem)) is None:
        return "those of what it wraps"
    letters = {size: letter for size, letter in _SIZES.values()}
    shapes = []
    for name, weight in loss.named_parameters():
        shape = ", ".join(_letters(size, letters) for size in weight.shape)
        shapes.append(f"`{name}` [{shape}]" if weight.shape else f"`{name}`")
    return ", ".join(shapes)


def _letters(size: int, letters: dict[int, str]) -> str:
    """A size as the letter that it is, or as a multiple of it."""
    for unit, letter in letters.items():
        if size % unit == 0:
            return letter if size == unit else f"{size // unit} {letter}"
    return str(size)


if __name__ == "__main__":
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(written(path))
