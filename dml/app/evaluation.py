"""run_evaluate(cfg): a checkpoint, or a pretrained network as it is, measured on the test set."""

import logging
import pydoc
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from dml.app.another_target import leave_out
from dml.app.build import OUR_KEYS, Built, build
from dml.app.checkpoint import GROUPS, data_to_test, read_to_evaluate
from dml.app.checks import check_config
from dml.app.code import code_version
from dml.app.folder import held
from dml.app.follow import follow_backbone
from dml.app.joined import checkpoint_paths, embedders_of, join, parts_of_row
from dml.app.launch import run_folder, told_on_command_line
from dml.app.network import check_network
from dml.app.outcome import list_broken, print_table, write_result
from dml.app.paths import expand_home
from dml.app.pictures import save_pictures
from dml.app.row import row_of_evaluation, row_of_zero_shot
from dml.app.schema import resolved
from dml.app.settings import Evaluation, Model
from dml.app.trainer import build_trainer
from dml.data.trained_on import TrainedOn, of_test_part
from dml.printable import printable

log = logging.getLogger(__name__)


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
    list_broken(built, folder)
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
        write_result(folder / "evaluation.json", metrics, row)
        save_pictures(trainer, built, metrics, row, folder)
        print_table(metrics, folder)
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
    list_broken(built, folder)
    trainer.test(built.model, built.data, verbose=False)
    metrics = built.model.test_metrics
    if trainer.is_global_zero:
        row = row_of_zero_shot(built, code_version(cfg))
        write_result(folder / "evaluation.json", metrics, row)
        save_pictures(trainer, built, metrics, row, folder)
        print_table(metrics, folder)
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
