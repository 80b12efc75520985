"""run_train(cfg) and run_evaluate(cfg): from a composed config to metrics, files and a table."""

import hashlib
import json
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from dml.app.build import Built, build, build_trainer
from dml.app.checkpoint import read_checkpoint
from dml.app.folder import code_version, finished_metrics, held, resume_point
from dml.app.launch import is_command_of_its_own, run_as_command
from dml.data.dataset import Source
from dml.engine.callbacks import BestCheckpoint
from dml.engine.datamodule import worker_died
from dml.engine.finite import NonFiniteLossError
from dml.engine.wandb_logger import finish as finish_wandb
from dml.report.figures import draw_embedding

# What Lightning says that no user could change, or that is not so here.
for _noise in (
    r".*isinstance\(treespec, LeafSpec\)",  # its own use of torch
    r".*your dataloader is not resumable",  # the sampler is, and the data module stores its state
    r"Checkpoint directory .* exists and is not empty",  # best.ckpt of a resumed run was just copied there
    r"Total length of `list` across ranks is zero",  # protocol=paper validates nothing
):
    warnings.filterwarnings("ignore", message=_noise)


def as_user_error(run: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turn a user's mistake into its message: Hydra prints a CompactHydraException without our stack.

    HYDRA_FULL_ERROR=1 shows the stack.
    """

    def wrapper(cfg: DictConfig) -> Any:
        try:
            return run(cfg)
        except Exception as error:
            if not isinstance(error, ValueError | NonFiniteLossError) and not worker_died(error):
                raise
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                # The others go on; Hydra itself tells only of the first that failed, and at the end.
                print(f"Job {HydraConfig.get().job.num} failed: {_message(error)}", file=sys.stderr)
            raise CompactHydraException(_message(error)) from error

    return wrapper


def _message(error: Exception) -> str:
    if worker_died(error):
        return (
            "a loader process was killed or crashed. The system kills processes when memory runs out: lower "
            "loader.workers, or give the job more; docs/troubleshooting.md says how to find out. The last checkpoint "
            "is kept"
        )
    text = str(error)
    if "Original Traceback" in text:
        # A loader process hands over its whole stack as text; the last line is what went wrong.
        text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
    return text


def run_train(cfg: DictConfig) -> dict[str, float]:
    """Train, evaluate the chosen checkpoint on the test set once, write everything into the run's folder.

    Files: config.yaml (resolved), checkpoints/last.ckpt and (when validated) best.ckpt, metrics.json, and for
    two-dimensional embeddings test_embeddings.npz and embedding.png. A folder that holds a finished run of the same
    settings is left as it is; one that holds an unfinished run goes on from its last checkpoint.

    Returns:
        The final metrics: test/... and, when validated, the best val/... that chose the checkpoint.

    Raises:
        ValueError: a mistake in the config; names the key.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    with held(folder):
        if (metrics := finished_metrics(cfg, folder)) is not None:
            rank_zero_only(print)(f"Finished already, and not run again: {folder}")
            return metrics
        if not is_command_of_its_own(cfg):
            return _train(cfg, folder)
    return run_as_command(folder)


def _train(cfg: DictConfig, folder: Path) -> dict[str, float]:
    if getattr(rank_zero_only, "rank", 0):
        # Ctrl-C reaches all processes of a run. The first, which ends the others, must not wait for one that is gone.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    config, code = OmegaConf.to_yaml(cfg, resolve=True), code_version()
    built = build(cfg)
    built.model.config["code"] = code  # for who resumes
    _list_broken(built, folder)
    resumed = resume_point(cfg, folder)
    checkpoints = folder / "checkpoints"
    if resumed is not None and resumed.parent != checkpoints and (best := resumed.with_name("best.ckpt")).is_file():
        checkpoints.mkdir(exist_ok=True)
        shutil.copy2(best, checkpoints / "best.ckpt")
    if resumed is not None:
        rank_zero_only(print)(f"Going on from {resumed}")
    (folder / "config.yaml").write_text(config)
    trainer = build_trainer(cfg, str(folder))
    for logger in trainer.loggers:
        logger.log_hyperparams(built.model.config)
    try:
        trainer.fit(built.model, datamodule=built.data, ckpt_path=resumed and str(resumed), weights_only=True)
        metrics = _test(cfg, trainer, built, folder, code)
    finally:
        finish_wandb()
    return metrics


@rank_zero_only
def _list_broken(built: Built, folder: Path) -> None:
    """Tell of the images that are left out, and list them in bad_images.txt."""
    if not built.broken:
        return
    lines = [f"{image}\t{reason}\n" for image, reason in built.broken.items()]
    (folder / "bad_images.txt").write_text("".join(lines))
    print(f"{len(lines)} images cannot be decoded and are left out (data.on_error=skip): {folder / 'bad_images.txt'}")


def _test(cfg: DictConfig, trainer: pl.Trainer, built: Built, folder: Path, code: str) -> dict[str, float]:
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    chosen = best.best_model_path or None if best is not None else None
    metrics: dict[str, float] = {}
    if best is not None and best.best_model_score is not None:
        metrics[cfg.protocol.monitor] = float(best.best_model_score)
    steps = trainer.global_step
    trainer.test(built.model, built.data, ckpt_path=chosen, weights_only=True, verbose=False)
    metrics.update(built.model.test_metrics)
    if trainer.is_global_zero:
        _save_picture(trainer, built, metrics, folder)
        _write(folder / "metrics.json", metrics, _row(built, steps, chosen, code))  # last: the run is finished
        _print_table(metrics, folder)
    return metrics


def _write(file: Path, metrics: dict[str, float], row: dict[str, Any]) -> None:
    # The file is the sign of a finished run, so it appears whole or not at all.
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"metrics": metrics, "row": row}, indent=2) + "\n")
    part.replace(file)


# Of the groups trainer and data, what says where a run is carried out and not what comes out of it.
_MACHINE = frozenset({"accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "enable_model_summary"})
_PLACE = frozenset(
    {"_target_", "root", "train_root", "test_root", "download", "cache", "cache_dir", "on_error", "max_bad"}
)


def _fingerprint(source: Source) -> str:
    """Of the classes and labels that are tested on: two folders of one name are not one data set."""
    digest = hashlib.sha256()
    for records in (source.test, source.gallery):
        if records is not None:
            digest.update("\0".join(records.class_names).encode() + records.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:12]


def _method(loss: dict[str, Any]) -> str:
    """The module of the loss, and of one that it wraps: nra, memory(contrastive)."""
    name = loss["_target_"].split(".")[-2]
    return f"{name}({_method(loss['loss'])})" if "loss" in loss else name


def _row(built: Built, steps: int, chosen: str | None, code: str) -> dict[str, Any]:
    """All that decides a result, for tables and for whoever compares two of them."""
    config = built.model.config
    step = torch.load(chosen, map_location="cpu", weights_only=True)["global_step"] if chosen else steps
    pretrained = config["backbone"].get("checkpoint_path") or config["backbone"]["pretrained"]
    packages = ("dml", "torch", "torchvision", "pytorch-lightning", "timm")
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
    return {
        "method": _method(config["loss"]),
        "data": built.source.name,
        "train_images": len(built.source.train),
        "train_classes": built.source.train.num_classes,
        "broken_images": len(built.broken),  # left out of all parts
        "loss": config["loss"],
        "sampler": config["sampler"],
        "backbone": config["backbone"]["name"],
        "weights": pretrained or "random",
        "dimension": config["embedder"]["dim"],
        "freeze_bn": config["embedder"]["freeze_bn"],
        "normalize": {"training": config["embedder"]["normalize"], "test": config["evaluator"]["normalize"]},
        "transform": config["transform"],
        "batch": config["sampler"]["classes_per_batch"] * config["sampler"]["samples_per_class"],
        "optimizer": config["optimizer"],
        "scheduler": config["scheduler"],
        "trainer": {key: value for key, value in config["trainer"].items() if key not in _MACHINE},
        "protocol": config["protocol"],
        "split": {key: value for key, value in config["data"].items() if key not in _PLACE},
        "test": _fingerprint(built.source),
        "engine": {key: value for key, value in config.get("engine", {}).items() if value},  # what is not plain
        "leaked": config["protocol"]["watch_test"],
        "seed": config["seed"],
        "steps": steps,
        "evaluated_step": step,
        "versions": versions,
        "code": code,
    }


def _save_picture(trainer: pl.Trainer, built: Built, metrics: dict[str, float], folder: Path) -> None:
    assert built.model.test_embeddings is not None
    embeddings, labels = built.model.test_embeddings
    if embeddings.shape[1] != 2:
        return
    np.savez_compressed(
        folder / "test_embeddings.npz",
        embeddings=embeddings.numpy(),
        labels=labels.numpy(),
        class_names=np.array(built.source.test.class_names),
    )
    picture = draw_embedding(folder, metrics.get("test/map"))
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image("test/embedding", [str(picture)])


def run_evaluate(cfg: DictConfig) -> dict[str, float]:
    """Rebuild data and model from a checkpoint and evaluate the test set again.

    Writes evaluation.json, with the same fields as metrics.json, into the run's folder.

    Raises:
        ValueError: the checkpoint cannot be used, or an override does not fit, or another process runs in the folder;
            names the key.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    with held(folder):
        return _evaluate(cfg, folder)


def _evaluate(cfg: DictConfig, folder: Path) -> dict[str, float]:
    checkpoint = read_checkpoint(Path(cfg.ckpt_path), "ckpt_path")
    trained = OmegaConf.create(checkpoint["dml_config"])
    for group in ("data", "transform", "evaluator", "loader"):
        trained[group] = cfg[group]
    built = build(trained, for_evaluation=True)
    try:
        built.model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"ckpt_path={cfg.ckpt_path} holds another model: {str(error).splitlines()[0]}") from error
    _list_broken(built, folder)
    trained.trainer, trained.progress_bar = cfg.trainer, cfg.progress_bar
    trainer = build_trainer(trained, str(folder), for_evaluation=True)
    trainer.test(built.model, built.data, verbose=False)
    metrics = built.model.test_metrics
    if trainer.is_global_zero:
        row = _row(built, checkpoint["global_step"], None, code_version())
        _write(folder / "evaluation.json", metrics, row)
        _print_table(metrics, folder)
    return metrics


def _print_table(metrics: dict[str, float], folder: Path) -> None:
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
    print(f"Files: {folder}")
