"""How checkpoints are written."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from dml.whole_file import write_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, whole or not at all: its own way copies from another disk, and waits for neither."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint.

        Raises:
            OSError: it cannot be written; the one before is there still.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(path, content.getbuffer())
