"""Weights & Biases beside a run, which neither stops nor waits when its server, its network or its process is gone."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

PROJECT = "dml"
_log = logging.getLogger(__name__)


def _never_stops(method: Callable[..., None]) -> Callable[..., None]:
    """Have a method that hands something to W&B fail once, with a warning, and do nothing from then on."""

    @functools.wraps(method)
    def wrapper(self: "UnattendedWandbLogger", *given: Any, **named: Any) -> None:
        if self.lost:
            return
        _ = self.experiment  # a start that is refused is the user's to know
        try:
            method(self, *given, **named)
        except Exception as error:
            self.lost = True
            _log.warning(f"W&B is gone ({error!r}): the run goes on, and what comes now is not logged there")

    return wrapper


class UnattendedWandbLogger(WandbLogger):
    """Lightning's logger, for runs that nobody looks after.

    Uploading is the business of a process of W&B's own, so a server that goes away while the run trains costs nothing;
    `settings.init_timeout` and `settings.finish_timeout` bound what start and end wait for it. What could not be sent
    is on disk, and `wandb sync` sends it.

    Variables of the environment win where the arguments are at their defaults: WANDB_MODE (offline), WANDB_PROJECT,
    WANDB_NAME, WANDB_RUN_GROUP and WANDB_DIR, and those that W&B reads itself (WANDB_ENTITY, WANDB_TAGS, WANDB_NOTES,
    WANDB_JOB_TYPE).

    Args:
        offline: only write to disk.
        project: of W&B.
        save_dir: folder of the run.
        name, group: of the run; None: those of `default`.
        default: the name and group that the run has if nobody names others.
        given: as Lightning's.

    Raises:
        ValueError: by the first thing that is logged: W&B is to send, and there is no login.
    """

    def __init__(
        self,
        *,
        offline: bool = True,
        project: str = PROJECT,
        save_dir: str = ".",
        name: str | None = None,
        group: str | None = None,
        default: Mapping[str, str | None] | None = None,
        **given: Any,
    ) -> None:
        set_there, default = os.environ, default or {}
        mode = set_there.get("WANDB_MODE") or "offline" if offline else "online"
        super().__init__(
            # Lightning's way to be offline is a variable of the environment, which the next job would inherit.
            offline=False,
            project=(set_there.get("WANDB_PROJECT") or PROJECT) if project == PROJECT else project,
            save_dir=set_there.get("WANDB_DIR") or save_dir,
            name=name or set_there.get("WANDB_NAME") or default.get("name"),
            group=group or set_there.get("WANDB_RUN_GROUP") or default.get("group"),
            **given,
        )
        self._wandb_init["mode"] = "offline" if mode == "dryrun" else mode
        del self._wandb_init["anonymous"]  # W&B warns of it, whatever its value
        self.lost = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of W&B, begun when it is first asked for; offline, if the server cannot be reached."""
        from wandb.errors import AuthenticationError, CommError, UsageError

        try:
            return super().experiment
        except (AuthenticationError, UsageError) as error:
            raise ValueError(
                f"logger.offline=false is not possible: {_first_line(error)}. Log in (`wandb login` or WANDB_API_KEY), "
                "or leave it true and send the run later (`wandb sync`)"
            ) from error
        except CommError as error:
            _log.warning(f"W&B cannot be reached ({_first_line(error)}): the run is logged as with logger.offline=true")
            self._wandb_init["mode"] = "offline"
            return super().experiment

    log_hyperparams = _never_stops(WandbLogger.log_hyperparams)
    log_metrics = _never_stops(WandbLogger.log_metrics)
    log_image = _never_stops(WandbLogger.log_image)

    def log_page(self, key: str, files: Sequence[str]) -> None:
        """Show HTML files there as they are, as `log_image` does pictures."""
        self._log_pages(key, files)

    @_never_stops
    def _log_pages(self, key: str, files: Sequence[str]) -> None:
        from wandb import Html

        self.experiment.log({key: [Html(file, inject=False) for file in files]})


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def finish() -> None:
    """Close this job's W&B run, so that the next job of a sweep gets its own; the run is on disk already."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        wandb.finish()
    except Exception as error:
        _log.warning(f"W&B could not close its run ({error!r}): what it had written is in the run's folder")
        with suppress(Exception):
            wandb.teardown()  # the next job gets a new process
        wandb.run = None  # type: ignore[attr-defined]
