"""Columns of an embedding that belong to several learners: embeddings [m, sum(groups)] of an embedder with groups."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from dml.losses.building_blocks.contract import require

Groups = Sequence[Annotated[int, Gt(0)]]  # widths, in the order of the columns


def require_groups(groups: Groups) -> tuple[int, ...]:
    """The widths of the groups.

    Raises:
        ValueError: there is none, or one is not positive.
    """
    require(len(groups) > 0 and min(groups, default=0) > 0, "loss.groups", list(groups), "widths greater than 0")
    return tuple(groups)


def parts_of(embeddings: Tensor, groups: Sequence[int]) -> tuple[Tensor, ...]:
    """Embeddings [m, sum(groups)] -> one [m, width] of each group.

    Raises:
        ValueError: the widths do not add up to the embeddings' columns.
    """
    given = embeddings.shape[1]
    require(sum(groups) == given, "loss.groups", list(groups), f"widths that add up to the embeddings' {given}")
    return embeddings.split(list(groups), dim=1)
