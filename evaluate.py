"""Evaluate a checkpoint again, or a pretrained network as it is.

`python evaluate.py ckpt_path=outputs/.../best.ckpt evaluator.ks=[1,10] ...`, `python evaluate.py model=NAME data=...`
"""

import sys

import hydra
from omegaconf import DictConfig

from dml.app.command import checkpoint_given, is_zero_shot, run_command
from dml.app.errors import as_user_error


def main(cfg: DictConfig) -> None:
    """Run the job."""
    as_user_error(_run)(cfg)


def _run(cfg: DictConfig) -> None:
    from dml.app.keys import check_early
    from dml.app.settings import Evaluation, Training

    check_early(cfg, Evaluation if "ckpt_path" in cfg else Training)
    from dml.app.evaluation import run_evaluate

    run_evaluate(cfg)


def _offer_trained_config(arguments: list[str]) -> None:
    if is_zero_shot(arguments):
        return
    path = checkpoint_given(arguments)
    from dml.app.checkpoint import offer_trained_config  # loads torch

    offer_trained_config(path, "trust=true" in arguments)


if __name__ == "__main__":
    config = "zero_shot" if is_zero_shot(sys.argv[1:]) else "evaluate"
    run_command(hydra.main(config_path="conf", config_name=config, version_base="1.3")(main), _offer_trained_config)
