"""What a user can mend, as one line instead of a stack."""

import errno
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from dml.printable import tolerant_output


class OtherRunError(ValueError):
    """A folder, or the run to go on from, is that of another run than the one asked for, and is left as it is."""


class OtherRunException(CompactHydraException):
    """The same, as Hydra hands it from a job to its sweeper."""


def as_user_error(run: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turn a user's mistake into its message: Hydra prints a CompactHydraException without our stack.

    HYDRA_FULL_ERROR=1 shows the stack.
    """

    def wrapper(cfg: DictConfig) -> Any:
        tolerant_output()
        try:
            return run(cfg)
        except Exception as caught:
            error = _not_hidden(caught)
            said = message_of(error)
            if said is None:  # a bug
                if error is caught:
                    raise
                raise error from None
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                # The others go on; Hydra itself tells only of the first that failed, and at the end.
                print(f"Job {HydraConfig.get().job.num} failed: {said}", file=sys.stderr)
            kind = OtherRunException if isinstance(error, OtherRunError) else CompactHydraException
            raise kind(said) from error

    return wrapper


def _not_hidden(error: Exception) -> Exception:
    # Lightning's clean-up asks a loader that could not start for its length, and that error hides why it could not.
    hidden = error.__context__
    return hidden if "iter(combined_loader)" in str(error) and isinstance(hidden, Exception) else error


def message_of(error: Exception) -> str | None:
    """What the user is told; None of an error that no user can mend."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        # No space, no more of what the user may have, a file that may not grow further.
        return (
            f"cannot write {error.filename or 'a file'}: {error.strerror}. What was written before is whole: free some "
            "space, then the same command with resume=DIR, the folder of this run, goes on (a sweep: the command alone)"
        )
    if "dml.engine.datamodule" in sys.modules and (said := _of_training(error)):  # what is not loaded has not failed
        return said
    if not isinstance(error, ValueError):
        return None
    text = str(error)
    if "Original Traceback" in text:
        # A loader process hands over its whole stack as text; the last line is what went wrong.
        text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
    return text


def _of_training(error: Exception) -> str | None:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from dml.engine.datamodule import out_of_shared_memory, worker_died
    from dml.engine.finite import NonFiniteLossError

    # Lightning's own word for a user's mistake: a callback that needs a logger, say.
    if isinstance(error, NonFiniteLossError | MisconfigurationException):
        return str(error)
    if out_of_shared_memory(error):
        return (
            "shared memory (/dev/shm) is full, through which loader processes hand over their batches. A container has "
            "64 MB of it unless told otherwise: start it with --shm-size=8g (docker, podman), or do with less: lower "
            "loader.workers or loader.eval_batch_size, or take data.cache=disk, whose images need no loader processes. "
            "The last checkpoint is kept"
        )
    if worker_died(error):
        return (
            "a loader process was killed or crashed. The system kills processes when memory runs out: lower "
            "loader.workers, or give the job more (a container also shared memory: --shm-size); "
            "docs/troubleshooting.md says how to find out. The last checkpoint is kept"
        )
    return None
