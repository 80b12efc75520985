"""Train and test one configuration: `python train.py data=... method=... key=value ...`; -m sweeps."""

import hydra
from omegaconf import DictConfig

from dml.app.choices import refuse_settings_of_emoji
from dml.app.command import run_command
from dml.app.errors import as_user_error


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Run the job; returns the validation metric, which sweepers maximise (never a test metric)."""
    refuse_settings_of_emoji(cfg)
    metrics = as_user_error(_run)(cfg)
    return metrics.get(cfg.protocol.monitor) if cfg.protocol.validate else None


def _run(cfg: DictConfig) -> dict[str, float]:
    from dml.app.keys import check_early
    from dml.app.settings import Training

    check_early(cfg, Training)
    # Imported here, as it takes seconds: --help, --cfg and most mistakes need no torch.
    from dml.app.run import run_train

    return run_train(cfg)


if __name__ == "__main__":
    run_command(main)
