"""run_train(cfg): from a composed config to metrics, files and a table."""

import functools
import logging
import pydoc
import signal
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dml.app.another_target import leave_out
from dml.app.build import Built, build, read_parts
from dml.app.checkpoint import read_checkpoint
from dml.app.checks import check_config
from dml.app.code import code_version
from dml.app.folder import (
    finished_metrics,
    has_begun,
    held,
    resume_point,
    same_images,
    same_schedule,
    what_became_of,
)
from dml.app.frozen import read_features_if_frozen
from dml.app.launch import (
    group_of_sweep,
    is_command_of_its_own,
    run_as_command,
    run_folder,
    told_on_command_line,
)
from dml.app.outcome import list_broken, print_table, write_result
from dml.app.paths import expand_home
from dml.app.pictures import save_pictures
from dml.app.row import method_of, row_of
from dml.app.search import validated_in
from dml.app.trainer import build_loggers, build_trainer
from dml.data.trained_on import TrainedOn
from dml.engine.callbacks import BestCheckpoint
from dml.engine.history import History
from dml.engine.pruning import PrunedError
from dml.engine.run_log import RunLog
from dml.engine.stop import StopSignals
from dml.engine.wandb_logger import finish as finish_wandb
from dml.whole_file import write_whole

log = logging.getLogger(__name__)

# What Lightning says that no user could change, or that is not so here.
for _noise in (
    r".*isinstance\(treespec, LeafSpec\)",  # its own use of torch
    r".*your dataloader is not resumable",  # the sampler is, and the data module stores its state
    r"Checkpoint directory .* exists and is not empty",  # best.ckpt of a resumed run was just copied there
    r"Total length of `list` across ranks is zero",  # protocol=paper validates nothing
    r"Found \d+ module\(s\) in eval mode",  # frozen batch norms (embedder.freeze_bn)
):
    warnings.filterwarnings("ignore", message=_noise)


def run_train(cfg: DictConfig) -> dict[str, float]:
    """Train, evaluate the chosen checkpoint on the test set once, write everything into the run's folder.

    The folder is Hydra's; without hydra.main, of a config that `compose` made, outputs/DATE/TIME.

    Files: config.yaml (resolved), checkpoints/last.ckpt and (when validated) best.ckpt, metrics.json, and then
    per_query.npz, retrieval.png, report.html and, for two-dimensional embeddings, test_embeddings.npz and
    embedding.png. A run that a search prunes is not tested, and its row says so. A folder that holds a finished run of
    the same settings is left as it is; one that holds an unfinished run goes on from its last checkpoint.

    Returns:
        The final metrics: test/... and, when validated, the best val/... that chose the checkpoint.

    Raises:
        ValueError: a mistake in the config; names the key.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    if not HydraConfig.initialized():
        cfg = cfg.copy()  # what follows fills it in, and a notebook may go on with it
    expand_home(cfg)
    folder = run_folder()
    left_out = leave_out(cfg, told_on_command_line(), pydoc.locate)
    check_config(cfg, begun=has_begun(cfg, folder))
    for line in left_out:
        rank_zero_only(log.warning)(line)
    code = code_version(cfg)
    first = not getattr(rank_zero_only, "rank", 0)
    if not first:
        # Ctrl-C reaches all processes of a run. The first, which ends the others, must not wait for one that is gone.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as stop:
        try:
            with held(folder):
                read = functools.partial(_trained_on, cfg)
                if (metrics := finished_metrics(cfg, folder, code, read)) is not None:
                    rank_zero_only(print)(f"{what_became_of(folder)} already, and not run again: {folder}")
                    return metrics
                if not is_command_of_its_own(cfg):
                    return _train(cfg, folder, code, stop)
            return run_as_command(folder, stop)
        except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of the former
            if stop.received is None and first:
                raise
    if stop.received is not None:
        print(f"Stopped by {stop.received.name}", file=sys.stderr)
        stop.hand_on()
    # Lightning kills the first process where another does not end well.
    sys.exit(stop.status if first else 0)


def _train(cfg: DictConfig, folder: Path, code: str, stop: StopSignals) -> dict[str, float]:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    trainer = build_trainer(cfg, folder, stop)  # first, as what Lightning refuses needs no data to be refused
    resumed, moved = resume_point(cfg, folder, code)
    built = build(cfg, resumed=resumed is not None)
    if resumed is not None:
        same_schedule(resumed, cfg)
    config = OmegaConf.to_yaml(cfg, resolve=True)
    built.model.config["code"] = code  # for who resumes
    if not getattr(rank_zero_only, "rank", 0):  # which writes the checkpoints
        trained_on = TrainedOn.of(built.source, built.validation)
        built.model.trained_on = trained_on._asdict()
        if resumed is not None:
            same_images(resumed, trained_on, moved)
    row_of(built, 0, None, code)  # what has no row should not be trained first
    list_broken(built, folder)
    read_features_if_frozen(cfg, built, trainer, resumed)
    wandb_run = None
    if resumed is not None:
        rank_zero_only(print)(f"Going on from {resumed}")
        before = read_checkpoint(resumed, "resume")
        wandb_run = before.get("wandb_run")
        if "weights_sha256" in before["dml_config"]:
            built.model.config["weights_sha256"] = before["dml_config"]["weights_sha256"]
        _copy(resumed.with_name("best.ckpt"), folder / "checkpoints" / "best.ckpt")
    rank_zero_only(write_whole)(folder / "config.yaml", config.encode())
    trainer.loggers = build_loggers(cfg, folder, _names(cfg, built), wandb_run)
    for logger in trainer.loggers:
        logger.log_hyperparams(built.model.config)
    try:
        trainer.fit(built.model, datamodule=built.data, ckpt_path=resumed and str(resumed), weights_only=True)
        if resumed is not None and trainer.global_step == before["global_step"]:  # nothing was left to train
            _copy(resumed, folder / "checkpoints" / "last.ckpt")
        metrics = _test(cfg, trainer, built, folder, code)
    except PrunedError as pruned:
        metrics = _give_up(cfg, trainer, built, folder, code, pruned)
    finally:
        finish_wandb()
    return metrics


def _names(cfg: DictConfig, built: Built) -> dict[str, str | None]:
    """Name and group of a run for who looks at many: nra-digits-seed0, and the folder of the sweep."""
    fold = cfg.data.get("fold")
    parts = [method_of(built.model.config["loss"]), built.source.name, f"seed{cfg.seed}"]
    return {
        "name": "-".join(parts if fold is None else [*parts, f"fold{fold}"]),
        "group": group_of_sweep(),
    }


def _trained_on(cfg: DictConfig) -> TrainedOn:
    return TrainedOn.of(*read_parts(cfg))


@rank_zero_only
def _copy(theirs: Path, ours: Path) -> None:
    """Bring a checkpoint of the run that is resumed into this run's folder."""
    if theirs.parent.resolve() != ours.parent.resolve() and theirs.is_file():
        ours.parent.mkdir(exist_ok=True)
        write_whole(ours, theirs.read_bytes())


def _test(cfg: DictConfig, trainer: pl.Trainer, built: Built, folder: Path, code: str) -> dict[str, float]:
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    chosen = best.best_model_path or None if best is not None else None
    metrics: dict[str, float] = {}
    if best is not None and best.best_model_score is not None:
        metrics[cfg.protocol.monitor] = float(best.best_model_score)
    steps = trainer.global_step
    # Before the test, which loads the chosen checkpoint and with it the curves up to its step.
    curves = next((c.curves for c in trainer.callbacks if isinstance(c, History)), {})  # type: ignore[attr-defined]
    trainer.test(built.model, built.data, ckpt_path=chosen, weights_only=True, verbose=False)
    metrics.update(built.model.test_metrics)
    before = next((c.before for c in trainer.callbacks if isinstance(c, RunLog)), None)  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        row = row_of(built, steps, chosen, code)
        write_result(folder / "metrics.json", metrics, row, before=before)  # first: the run is finished
        save_pictures(trainer, built, metrics, row, folder, curves)
        print_table(metrics, folder, before)
    return metrics


def _give_up(
    cfg: DictConfig, trainer: pl.Trainer, built: Built, folder: Path, code: str, pruned: PrunedError
) -> dict[str, float]:
    """Write down that a search has pruned this run. Its test images are not read."""
    metrics = {cfg.protocol.monitor: max(validated_in(folder).values())}
    if trainer.is_global_zero:
        step = {"step": pruned.step, cfg.protocol.monitor: pruned.value}
        write_result(
            folder / "metrics.json", metrics, row_of(built, trainer.global_step, None, code) | {"pruned": step}
        )
        print(f"Pruned after step {pruned.step}: {cfg.protocol.monitor} is {pruned.value:.4f}. Files: {folder}")
    return metrics
