"""Evaluate a checkpoint again: `python evaluate.py ckpt_path=outputs/.../best.ckpt evaluator.ks=[1,10] ...`."""

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run the job."""
    from dml.app.errors import as_user_error
    from dml.app.run import run_evaluate

    as_user_error(run_evaluate)(cfg)


if __name__ == "__main__":
    from dml.app.checkpoint import offer_trained_config
    from dml.app.launch import one_folder

    offer_trained_config(sys.argv[1:])
    sys.argv += one_folder(sys.argv)
    main()
