"""The code of a result: a fingerprint of the sources that a run uses, and of no others."""

import ast
import functools
import hashlib
import site
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_CORE = ("dml.app.run", "dml.app.evaluation")  # trains and tests; evaluates
_AFTER = "dml.report"  # reads what is finished
# The row has their versions.
_LIBRARIES = frozenset({"torch", "torchvision", "timm", "pytorch_lightning", "lightning_fabric", "lightning"})
_PLACES = [*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), *site.getsitepackages()]
_INSTALLED = {Path(path).resolve() for path in (*_PLACES, site.getusersitepackages())}


def code_version(cfg: DictConfig | Mapping[str, Any]) -> str:
    """A fingerprint of the sources that a run of this config uses.

    They are what its training loop imports and the modules of the parts that the config names, with all that these
    import of dml or of a folder of one's own. Of what is installed only a part's own module counts, and of libraries
    whose versions the row has, nothing. Found in the syntax trees: it does not matter what this process has imported.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    assert isinstance(plain, Mapping)
    config = {key: value for key, value in plain.items() if key != "logger"}  # decides no number
    digest = hashlib.sha256()
    for name, file in sorted(used_files(_targets(config)).items()):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def used_files(targets: Iterable[str]) -> dict[str, Path]:
    """Module -> its file, of all that a run with parts of these names uses."""
    used: dict[str, Path] = {}
    waiting = [module for name in _CORE for module in _modules(name, used, installed=True)]
    for target in targets:
        if target.partition(".")[0] not in _LIBRARIES:
            waiting += _modules(target, used, installed=True)
    while waiting:
        name = waiting.pop()
        file = used[name]
        if file.suffix == ".py" and not _is_installed(name, file):
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            for imported in _imports(file.read_bytes(), package):
                waiting += _modules(imported, used, installed=False)
    return used


def _targets(node: Any) -> Iterator[str]:
    """All `_target_` of a config."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _modules(name: str, used: dict[str, Path], *, installed: bool) -> list[str]:
    """The modules on the way to a dotted name (a package, a module in it) that are not known yet; marks them used."""
    if f"{name}.".startswith(f"{_AFTER}."):
        return []
    found = []
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        module = ".".join(parts[:i])
        if module in used:
            continue
        file = _file(module)
        if file is None:  # a package without a file, or what a module holds
            continue
        if not installed and _is_installed(module, file):
            break
        used[module] = file
        found.append(module)
    return found


def _file(module: str) -> Path | None:
    """Where the source of a module is; None: there is no such module, or no file. Imports nothing."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
        for i, _ in enumerate(rest):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(".".join([top, *rest[: i + 1]]), list(spec.submodule_search_locations))
    except ValueError:  # a module that was made by hand
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _is_installed(module: str, file: Path) -> bool:
    return module.partition(".")[0] != "dml" and _below_installed(file.parent)


@functools.cache
def _below_installed(folder: Path) -> bool:
    place = folder.resolve()
    return any(installed in (place, *place.parents) for installed in _INSTALLED)


@functools.cache  # by content: a sweep asks for the same files at each of its jobs
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """The names that a file of a package imports, wherever in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            base = [*parents, *filter(None, [node.module])]
            found += [".".join([*base, alias.name]) for alias in node.names]
    return tuple(found)
