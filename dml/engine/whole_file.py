"""Files that are there whole or not at all, however the process that writes them ends."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file under another name, have it reach the disk, and only then give it its own.

    Raises:
        OSError: it cannot be written, and names it; what was there before is there still.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints by `write_whole`: its own way copies from another disk, and does not wait for either."""

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
