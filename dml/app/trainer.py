"""Config -> the Lightning trainer of a run with its callbacks, and its loggers."""

import pydoc
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment

from dml.app.make import make
from dml.app.search import pruning_in
from dml.app.settings import loggers_of
from dml.engine.averaging import AveragedWeights
from dml.engine.blank import BlankImages
from dml.engine.callbacks import make_callbacks
from dml.engine.checkpoint_io import WholeCheckpoints
from dml.engine.history import History
from dml.engine.progress import StepProgressBar
from dml.engine.run_log import RunLog
from dml.engine.stop import StopSignals
from dml.engine.wandb_logger import UnattendedWandbLogger


def build_loggers(
    cfg: DictConfig, folder: Path, default: dict[str, str | None], wandb_run: str | None = None
) -> list[Logger]:
    """What the config names, if anything: a logger, or several, each under a name.

    Args:
        cfg: composed config.
        folder: of the run.
        default: name and group of the run at W&B, if nobody names others.
        wandb_run: id of the W&B run to go on with.
    """
    loggers = []
    for node in loggers_of(cfg.logger):
        given: dict[str, Any] = {"save_dir": str(folder)}
        if isinstance(call := pydoc.locate(node["_target_"]), type) and issubclass(call, UnattendedWandbLogger):
            given["default"] = default
            if wandb_run and node.get("id") is None:
                given["id"] = wandb_run
        loggers.append(make(node, **given))
    return loggers


def build_trainer(cfg: DictConfig, folder: Path, stop: StopSignals | None = None) -> pl.Trainer:
    """The Lightning trainer with its callbacks, writing into `folder`; it has no logger yet.

    Args:
        cfg: composed config.
        folder: of the run.
        stop: the signals that end a training; None: for evaluation, which writes no checkpoints.
    """
    callbacks: list[pl.Callback] = [BlankImages()]
    if stop is not None:
        callbacks += [make(node) for node in cfg.callbacks.values()]  # first, so that last.ckpt holds their state
        if cfg.engine.ema is not None:
            callbacks.append(AveragedWeights(decay=cfg.engine.ema))
        callbacks.append(History())  # before what writes last.ckpt, which is to hold what this step added
        callbacks += make_callbacks(
            folder=str(folder / "checkpoints"),
            monitor=cfg.protocol.monitor if cfg.protocol.validate else None,
            patience=cfg.protocol.patience,
            minutes=cfg.checkpoint_minutes,
            stop=stop,
        )
        callbacks += pruning_in(folder)
        callbacks.append(RunLog(cfg.protocol.monitor if cfg.protocol.validate else None))
    if cfg.progress_bar:
        callbacks.append(StepProgressBar())
    every = cfg.trainer.get("check_val_every_n_epoch")
    if every is None and isinstance(cfg.trainer.val_check_interval, float):  # a share of every epoch
        every = 1
    try:
        trainer: pl.Trainer = make(
            cfg.trainer,
            check_val_every_n_epoch=every,
            logger=False,
            callbacks=callbacks,
            plugins=_plugins(),
            default_root_dir=str(folder),
            enable_progress_bar=cfg.progress_bar,
        )
    except ValueError as error:  # Lightning knows nothing of our keys
        given = ", ".join(f"trainer.{key}={cfg.trainer.get(key)}" for key in ("accelerator", "devices", "strategy"))
        raise ValueError(f"trainer: {error} (with {given})") from error
    precision = cfg.trainer.get("precision")
    if str(precision).startswith("16") and trainer.strategy.root_device.type == "cpu":
        # Lightning would compute in bfloat16, and the row would say otherwise.
        raise ValueError(
            f"trainer.precision={precision} needs a GPU, and this run would use the CPU: give "
            "trainer.precision=bf16-mixed or 32-true"
        )
    return trainer


def _plugins() -> list[Any]:
    # Under Slurm Lightning would write checkpoints of its own at a signal, and read them before ours.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [WholeCheckpoints(), *slurm]
