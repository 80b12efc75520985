"""What the config of a loss leaves open: sizes that data and embedder know, in it and in the losses that it wraps."""

import pydoc
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from dml.app.schema import parameters_of, parts_in
from dml.app.settings import LATER
from dml.words import counted


def inner_losses(loss: Any) -> Iterator[Any]:
    """The nodes of the losses that a node wraps: alone, in a list, or by names."""
    for value in loss.values():
        yield from (one for _, one in parts_in(value))


def leaves_open(loss: Any, key: str) -> bool:
    """Whether a key is null in the node of a loss, or of one that it wraps."""
    return (key in loss and loss[key] is None) or any(leaves_open(inner, key) for inner in inner_losses(loss))


def groups_of(embedder: Any, dim: int | None) -> tuple[int, ...]:
    """The widths of an embedder's groups of columns; of one that does not say, `dim` alone."""
    return tuple(getattr(embedder, "groups", () if dim is None else (dim,)))


def fill_in_sizes(loss: Any, groups: Sequence[int], num_classes: int) -> None:
    """Put what only data and embedder know into the node of a loss and of those that it wraps; what is there stays.

    Args:
        loss: a node; changed.
        groups: widths of the columns that the loss sees; empty where nobody knows them.
        num_classes: of the training part.

    Raises:
        ValueError: a loss with weights sees one group at a time, and their widths differ; names the key.
    """
    for name, value in zip(LATER, (num_classes, sum(groups) or None, list(groups) or None), strict=True):
        if name in loss and loss[name] is None:
            loss[name] = value
    if "groups" in loss:  # what it wraps sees one of them
        widths = sorted(set(loss["groups"] or ()))
        if len(widths) > 1 and any(leaves_open(inner, "embedding_dim") for inner in inner_losses(loss)):
            raise ValueError(
                f"loss.loss.embedding_dim cannot be {' and '.join(map(str, widths))}, the widths of the embedder's "
                "groups: give groups of one width, or a loss without weights"
            )
        groups = widths[:1]
    for inner in inner_losses(loss):
        fill_in_sizes(inner, groups, num_classes)


def too_few_classes(loss: Any, classes: int, name: str = "loss") -> Iterator[str]:
    """A line for each num_classes, in a node or in those that it wraps, that is less than the training classes."""
    given = loss.get("num_classes")
    if given is not None and given < classes:
        yield f"{name}.num_classes={given} is less than the {counted(classes, 'training class')}"
    for key, value in loss.items():
        for rest, one in parts_in(value):
            yield from too_few_classes(one, classes, f"{name}.{key}{rest}")


def group_problems(node: Any, loss: nn.Module, embedder: nn.Module) -> Iterator[str]:
    """Of a loss that takes the columns of several groups for one embedding, or leaves columns for training unused.

    Args:
        node: of the loss.
        loss: made of it.
        embedder: whose columns it is to see.

    Returns:
        One line a problem, with the command that works.
    """
    groups, dim = groups_of(embedder, None), getattr(embedder, "dim", None)
    *_, name = type(embedder).__module__.split(".")
    if dim is not None and sum(groups) > dim and not getattr(loss, "takes_copies", False):
        yield (
            f"embedder={name} gives columns for training alone, of which {type(loss).__name__} makes no use: take the "
            "loss that they are for (embedder=groups: embedder.detached=false, or loss=bier with loss.adversarial)"
        )
    elif len(groups) > 1 and not _tells_apart(node):
        package, _, rest = node["_target_"].partition("dml.losses.")
        own = "NAME" if package or not rest else rest.split(".")[0]
        yield (
            f"embedder={name} has {len(groups)} groups of columns, which {type(loss).__name__} does not tell apart: "
            f"loss=per_group loss@loss.loss={own}"
        )


def _tells_apart(node: Any) -> bool:
    """Whether a loss, or one that it wraps, has an argument `groups`."""
    return "groups" in parameters_of(pydoc.locate(node["_target_"]))[0] or any(map(_tells_apart, inner_losses(node)))
