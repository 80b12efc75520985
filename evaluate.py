"""Evaluate a checkpoint again: `python evaluate.py ckpt_path=outputs/.../best.ckpt evaluator.ks=[1,10] ...`."""

import hydra
from omegaconf import DictConfig

from dml.app.command import run_command
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


if __name__ == "__main__":
    from dml.app.checkpoint import offer_trained_config

    run_command(main, offer_trained_config)
