"""run_train(cfg) and run_evaluate(cfg): from a composed config to metrics, files and a table."""

import functools
import json
import logging
import pydoc
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from dml.app.another_target import leave_out
from dml.app.build import OUR_KEYS, Built, build, read_parts
from dml.app.checkpoint import GROUPS, data_to_test, read_checkpoint, read_to_evaluate
from dml.app.checks import check_config
from dml.app.code import code_version
from dml.app.folder import finished_metrics, has_begun, held, resume_point, same_images, same_schedule
from dml.app.follow import follow_backbone
from dml.app.frozen import read_features_if_frozen
from dml.app.joined import checkpoint_paths, embedders_of, join, parts_of_row
from dml.app.launch import (
    group_of_sweep,
    is_command_of_its_own,
    run_as_command,
    run_folder,
    told_on_command_line,
)
from dml.app.network import check_network
from dml.app.paths import expand_home
from dml.app.pictures import save_pictures
from dml.app.row import method_of, row_of, row_of_evaluation, row_of_zero_shot
from dml.app.schema import resolved
from dml.app.search import validated_in
from dml.app.settings import Evaluation, Model
from dml.app.trainer import build_loggers, build_trainer
from dml.data.trained_on import TrainedOn, of_test_part
from dml.engine.callbacks import BestCheckpoint
from dml.engine.pruning import PrunedError
from dml.engine.run_log import RunLog
from dml.engine.stop import StopSignals
from dml.engine.wandb_logger import finish as finish_wandb
from dml.printable import printable
from dml.report.tables import further
from dml.whole_file import write_whole
from dml.words import counted

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
                    rank_zero_only(print)(f"Finished already, and not run again: {folder}")
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
    _list_broken(built, folder)
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


@rank_zero_only
def _list_broken(built: Built, folder: Path) -> None:
    """Tell of the images that are left out, and list them in bad_images.txt."""
    if not built.broken:
        return
    # The names as the disk has them, for who hands them to another program; but a line is one image.
    lines = [f"{_in_one_line(str(image))}\t{printable(reason)}\n" for image, reason in built.broken.items()]
    write_whole(folder / "bad_images.txt", "".join(lines).encode(errors="surrogateescape"))
    what = f"{counted(len(lines), 'image')} cannot be decoded and {'is' if len(lines) == 1 else 'are'} left out"
    print(f"{what} (data.on_error=skip): {folder / 'bad_images.txt'}")


def _in_one_line(name: str) -> str:
    return "".join(repr(c)[1:-1] if c in "\t\n\r" else c for c in name)


def _test(cfg: DictConfig, trainer: pl.Trainer, built: Built, folder: Path, code: str) -> dict[str, float]:
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    chosen = best.best_model_path or None if best is not None else None
    metrics: dict[str, float] = {}
    if best is not None and best.best_model_score is not None:
        metrics[cfg.protocol.monitor] = float(best.best_model_score)
    steps = trainer.global_step
    trainer.test(built.model, built.data, ckpt_path=chosen, weights_only=True, verbose=False)
    metrics.update(built.model.test_metrics)
    before = next((c.before for c in trainer.callbacks if isinstance(c, RunLog)), None)  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        row = row_of(built, steps, chosen, code)
        _write(folder / "metrics.json", metrics, row, before=before)  # first: the run is finished
        save_pictures(trainer, built, metrics, row, folder)
        _print_table(metrics, folder, before)
    return metrics


def _give_up(
    cfg: DictConfig, trainer: pl.Trainer, built: Built, folder: Path, code: str, pruned: PrunedError
) -> dict[str, float]:
    """Write down that a search has pruned this run. Its test images are not read."""
    metrics = {cfg.protocol.monitor: max(validated_in(folder).values())}
    if trainer.is_global_zero:
        step = {"step": pruned.step, cfg.protocol.monitor: pruned.value}
        _write(folder / "metrics.json", metrics, row_of(built, trainer.global_step, None, code) | {"pruned": step})
        print(f"Pruned after step {pruned.step}: {cfg.protocol.monitor} is {pruned.value:.4f}. Files: {folder}")
    return metrics


def _write(file: Path, metrics: dict[str, float], row: dict[str, Any], **more: Any) -> None:
    # The file is the sign of a finished run, so it appears whole or not at all.
    content = {"metrics": metrics, **more, "row": row}
    # A config of YAML can hold a value that JSON cannot (bytes): not to be the end of a result.
    write_whole(file, (json.dumps(content, indent=2, default=str) + "\n").encode())


def run_evaluate(cfg: DictConfig) -> dict[str, float]:
    """Rebuild data and model from a checkpoint and evaluate the test set again; without one, a pretrained network.

    Writes evaluation.json, with the same fields as metrics.json, into the run's folder.

    Raises:
        ValueError: the checkpoint cannot be used, or an override does not fit, or another process runs in the folder;
            names the key.
    """
    folder = run_folder()
    with held(folder):
        return _evaluate(cfg, folder) if "ckpt_path" in cfg else _evaluate_pretrained(cfg, folder)


def _evaluate(cfg: DictConfig, folder: Path) -> dict[str, float]:
    expand_home(cfg)
    paths = checkpoint_paths(cfg)
    checkpoints = [read_to_evaluate(path, cfg.trust is True) for path in paths]  # before what they name is looked up
    checkpoint = checkpoints[0]
    check_config(cfg, Evaluation)
    trained = OmegaConf.create(checkpoint["dml_config"])
    check_config(trained, Model)
    for group in (*GROUPS, "trainer", "progress_bar"):
        trained[group] = cfg[group]
    plain = resolved(trained)[0]
    if line := follow_backbone(trained, plain, trained=True):
        log.info(line)
    check_network(trained)  # of images of the size that is wanted now
    trainer = build_trainer(trained, folder)
    told = {override.partition("=")[0].lstrip("+") for override in told_on_command_line()}
    trained.data = data_to_test(OmegaConf.to_container(cfg.data, resolve=True), told)  # type: ignore[arg-type]
    others = embedders_of(paths, checkpoints, cfg, told)
    built = build(trained, for_evaluation=True)
    try:
        built.model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"ckpt_path={paths[0]} holds another model: {str(error).splitlines()[0]}") from error
    join(built, others)
    _list_broken(built, folder)
    read = [TrainedOn.read(one.get("trained_on")) for one in checkpoints]
    trained_on, leak = read[0], None
    if trainer.is_global_zero:
        leaks = [_leak(built, one, its) for one, its in zip(checkpoints, read, strict=True)]
        leak = None if None in leaks else "; ".join(dict.fromkeys(filter(None, leaks)))
    trainer.test(built.model, built.data, verbose=False)
    metrics = built.model.test_metrics
    if trainer.is_global_zero:
        row = row_of_evaluation(built, checkpoint, trained_on, leak, code_version(trained))
        if joined := parts_of_row(paths, checkpoints):
            row["joined"] = joined
        _write(folder / "evaluation.json", metrics, row)
        save_pictures(trainer, built, metrics, row, folder)
        _print_table(metrics, folder)
    return metrics


def _evaluate_pretrained(cfg: DictConfig, folder: Path) -> dict[str, float]:
    """What a network is worth before anybody trains it: the score to beat, on the test part that training would test.

    Raises:
        ValueError: a mistake in the config; names the key.
    """
    expand_home(cfg)
    left_out = leave_out(cfg, told_on_command_line(), pydoc.locate)
    check_config(cfg)
    for line in left_out:
        log.warning(line)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)  # of a head, if one is asked for
    trainer = build_trainer(cfg, folder)
    built = build(cfg, for_evaluation=True, zero_shot=True)
    _list_broken(built, folder)
    trainer.test(built.model, built.data, verbose=False)
    metrics = built.model.test_metrics
    if trainer.is_global_zero:
        row = row_of_zero_shot(built, code_version(cfg))
        _write(folder / "evaluation.json", metrics, row)
        save_pictures(trainer, built, metrics, row, folder)
        _print_table(metrics, folder)
    return metrics


def _leak(built: Built, checkpoint: dict[str, Any], trained_on: TrainedOn | None) -> str | None:
    """What of the tested images and classes was trained on, in words, and said; None: it is unknown."""
    if trained_on is None:
        log.warning("The checkpoint does not say what it was trained on: whether the tested classes are new is unknown")
        return None
    before, now = (
        {key: value for key, value in data.items() if key not in OUR_KEYS}
        for data in (checkpoint["dml_config"]["data"], built.model.config["data"])
    )
    if before == now and trained_on.test == of_test_part(built.source):
        return built.source.leak  # the test part that belongs to the training
    if leak := trained_on.overlap(built.source):
        part = before.get("train_fraction")
        hint = f" (data.train_fraction={part} beside data.root leaves out what trains)" if part is not None else ""
        log.warning(printable(f"{built.source.name}: {leak}. The row is marked as leaked{hint}"))
    return leak


def _print_table(metrics: dict[str, float], folder: Path, before: dict[str, float] | None = None) -> None:
    """The metrics, and beside those of the validation part what they were before the first step."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    known = before is not None and any(name in before for name in metrics)
    if known:
        table.add_column("before training", justify="right")
    for name, value in metrics.items():
        if name.count("/") > 1:
            continue
        then = [f"{before[name]:.4f}" if before and name in before else ""] if known else []
        table.add_row(name, f"{value:.4f}", *then)
    Console().print(table)
    names, found = further(metrics)
    if found:
        table = Table("search", *names)
        for search, values in found.items():
            table.add_row(search, *(f"{values[name]:.4f}" if name in values else "" for name in names))
        Console().print(table)
    print(f"Files: {folder}")
