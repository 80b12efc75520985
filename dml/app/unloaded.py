"""Signatures of parts, read from their source: nothing is imported, so a mistake is told before torch is loaded."""

import ast
import builtins
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Modules from which annotations may take names: they load at once.
_LIGHT = ("typing", "collections", "annotated_types", "types", "pathlib", "math")


def locate_unloaded(target: str) -> Callable[..., Any]:
    """A stand-in that has the signature of the class or function called `target`, as pydoc.locate would find it.

    It knows less than the real one, and nothing that the real one does not: a type that is not made of plain ones is
    left open, and of what cannot be read (C, a dataclass, a decorated function) the stand-in takes anything.
    """

    def stand_in(**anything: Any) -> None:
        raise NotImplementedError("it stands for a signature, and is not to be called")

    found = _found(target)
    if found is not None:
        stand_in.__signature__ = _signature(*found)  # type: ignore[attr-defined]
    return stand_in


def _found(target: str, depth: int = 8) -> tuple[ast.FunctionDef | ast.ClassDef, "_Names"] | None:
    """The definition of a target, followed through `from module import name`, and the names around it."""
    module, _, name = target.rpartition(".")
    file = _file(module)
    if file is None or not depth:
        return None
    names = _names(file, module)
    defined = names.defined.get(name)
    if isinstance(defined, ast.FunctionDef | ast.ClassDef):
        return defined, names
    return _found(defined, depth - 1) if isinstance(defined, str) else None


def _file(module: str) -> Path | None:
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a package of packages none is imported
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not inner and spec.origin:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or []:
        path = Path(folder, *inner)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


@functools.cache
def _names(file: Path, module: str) -> "_Names":
    return _Names(file, module)


class _Names(dict[str, Any]):
    """The names of a module that mean something without importing it."""

    def __init__(self, file: Path, module: str) -> None:
        super().__init__()
        self.defined: dict[str, ast.AST | str] = {}  # a definition, a value, or the dotted name that was imported
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError):  # who imports it will be told
            return
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] if node.level else ""
                source = ".".join(filter(None, [above, node.module]))
                self.defined.update({alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names})
            elif isinstance(node, ast.Import):
                self.defined.update({alias.name: alias.name for alias in node.names if alias.name in _LIGHT})
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.defined[node.targets[0].id] = node.value

    def __missing__(self, name: str) -> Any:
        node = self.defined.get(name)
        if node in _LIGHT:
            return importlib.import_module(str(node))
        if isinstance(node, str):
            module, _, imported = node.rpartition(".")
            if module.split(".")[0] in _LIGHT:
                return getattr(importlib.import_module(module), imported)
            if (file := _file(module)) is not None:
                return _names(file, module)[imported]
        elif isinstance(node, ast.expr):
            return self.value(node)
        elif node is None and isinstance(found := getattr(builtins, name, None), type):
            return found
        raise NameError(name)

    def value(self, node: ast.expr) -> Any:
        """What an expression of the module is, such as a type."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body  # an annotation in quotes
        return eval(compile(ast.Expression(node), "annotation", "eval"), {"__builtins__": {}}, self)

    def annotation(self, node: ast.expr | None) -> Any:
        """A type; empty where it cannot be told."""
        try:
            return inspect.Parameter.empty if node is None else self.value(node)
        except Exception:  # whatever an expression meets whose names are not all known
            return inspect.Parameter.empty


def _signature(node: ast.FunctionDef | ast.ClassDef, names: _Names, depth: int = 8) -> inspect.Signature:
    anything = inspect.Parameter("anything", inspect.Parameter.VAR_KEYWORD)
    unknown = inspect.Signature([anything])
    if isinstance(node, ast.ClassDef):
        made = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        if node.decorator_list or node.keywords or "__new__" in made or not depth:
            return unknown
        if "__init__" not in made:  # that of the base
            base = node.bases[0] if len(node.bases) == 1 else None
            defined = names.defined.get(base.id) if isinstance(base, ast.Name) else None
            found = _found(defined) if isinstance(defined, str) else (defined, names)
            if found is None or not isinstance(found[0], ast.ClassDef):
                return unknown
            return _signature(found[0], found[1], depth - 1)
        node, first = made["__init__"], 1  # without self
    else:
        first = 0
    given, kinds = node.args, inspect.Parameter
    ordered = [*given.posonlyargs, *given.args]
    optional = len(ordered) - len(given.defaults)
    parameters = [
        kinds(
            arg.arg,
            kinds.POSITIONAL_ONLY if i < len(given.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD,
            default=... if i >= optional else kinds.empty,
        )
        for i, arg in enumerate(ordered)
    ]
    parameters += [
        kinds(arg.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else ...)
        for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    arguments = [*ordered, *given.kwonlyargs]
    if node.decorator_list:  # what a decorator makes of it may take more and need less; the names are worth knowing
        parameters = [p.replace(default=...) for p in parameters]
    else:
        parameters = [
            p.replace(annotation=names.annotation(arg.annotation)) for p, arg in zip(parameters, arguments, strict=True)
        ]
    open_ended = [anything] if given.kwarg or node.decorator_list else []
    return inspect.Signature([*parameters[first:], *open_ended])
