"""Evaluate a checkpoint again: `python evaluate.py ckpt_path=outputs/.../best.ckpt evaluator.ks=[1,10] ...`."""

import hydra
from omegaconf import DictConfig

from dml.app.command import checkpoint_given, run_command
from dml.app.errors import as_user_error


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run the job."""
    as_user_error(_run)(cfg)


def _run(cfg: DictConfig) -> None:
    from dml.app.keys import check_early
    from dml.app.settings import Evaluation

    check_early(cfg, Evaluation)
    from dml.app.run import run_evaluate

    run_evaluate(cfg)


def _offer_trained_config(arguments: list[str]) -> None:
    path = checkpoint_given(arguments)
    from dml.app.checkpoint import offer_trained_config  # loads torch

    offer_trained_config(path, "trust=true" in arguments)


if __name__ == "__main__":
    run_command(main, _offer_trained_config)
