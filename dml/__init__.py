"""Deep metric learning: images -> batches -> embeddings -> loss, and embeddings -> ranking -> metrics -> tables."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dml.use.trained import Trained


def load(path: str | Path, *, trust: bool = False) -> "Trained":
    """The model of a finished run: `dml.load("outputs/DATE/TIME").embed(["a.jpg", "b.jpg"])` -> [2, D].

    Args:
        path: folder of the run, or one of its checkpoints.
        trust: also make parts of other packages that the checkpoint names; they can run any code.

    Raises:
        ValueError: there is no checkpoint of a finished run, or it could run code and there is no trust.
    """
    from dml.use.trained import load as load_trained  # here, as a loss alone needs neither Hydra nor Lightning

    return load_trained(path, trust=trust)
