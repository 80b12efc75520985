"""Train and test one configuration: `python train.py data=... method=... key=value ...`; -m sweeps."""

import sys

import hydra
from omegaconf import DictConfig

from dml.app.choices import refuse_settings_of_digits
from dml.app.launch import one_folder


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Run the job; returns the validation metric, which sweepers maximise (never a test metric)."""
    refuse_settings_of_digits(cfg)
    # Imported here so that --help and --cfg answer without loading torch.
    from dml.app.errors import as_user_error
    from dml.app.run import run_train

    metrics = as_user_error(run_train)(cfg)
    return metrics.get(cfg.protocol.monitor) if cfg.protocol.validate else None


if __name__ == "__main__":
    sys.argv += one_folder(sys.argv)
    main()
