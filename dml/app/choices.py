"""A command whose choices do not go together, found before anything heavy is imported."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

_EXPERIMENTS = Path(__file__).resolve().parents[2] / "conf" / "experiment"
_DIGITS = ("digits", "mnist")  # what the settings of experiment=digits are for
_DECIDE = ("experiment", "model", "backbone", "embedder", "transform")


def refuse_settings_of_digits(cfg: DictConfig) -> None:
    """Refuse images of another kind with the network of the digits, unless the command says anything of the network.

    Raises:
        CompactHydraException: one line with the command that was meant.
    """
    package, _, rest = str(cfg.data.get("_target_")).partition("dml.data.")
    module = rest.split(".")[0]
    if package or not rest or module in _DIGITS or HydraConfig.get().runtime.choices.get("experiment") != "digits":
        return
    told = HydraConfig.get().overrides.task
    if any(override.lstrip("+~").startswith(_DECIDE) for override in told):
        return
    choice = HydraConfig.get().runtime.choices["data"]
    with_own = (_EXPERIMENTS / f"{module}.yaml").is_file() and choice == module
    data = [override for override in told if override.startswith("data.")]
    meant = [f"experiment={module}"] if with_own else ["experiment=folder", f"data={choice}"]
    raise CompactHydraException(
        f"data={choice} without an experiment would train the network of the digits: 28 x 28 pixels into 2 dimensions. "
        f"Give python train.py {' '.join(meant + data)}, or experiment=digits if that is what you want"
    )
