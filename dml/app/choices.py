"""A command whose choices do not go together, found before anything heavy is imported."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

_EXPERIMENTS = Path(__file__).resolve().parents[2] / "conf" / "experiment"
_DECIDE = ("experiment", "model", "backbone", "embedder", "transform")


def refuse_settings_of_emoji(cfg: DictConfig) -> None:
    """Refuse other images with the settings of the emoji, the default, unless the command says anything of the network.

    Raises:
        CompactHydraException: one line with the command that was meant.
    """
    package, _, rest = str(cfg.data.get("_target_")).partition("dml.data.")
    module = rest.split(".")[0]
    choices, told = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
    if package or not rest or choices["data"] == "emoji" or choices.get("experiment") != "emoji":
        return
    if any(override.lstrip("+~").startswith(_DECIDE) for override in told):
        return
    choice = choices["data"]
    with_own = (_EXPERIMENTS / f"{module}.yaml").is_file() and choice == module
    data = [override for override in told if override.startswith("data.")]
    other = "digits" if module == "mnist" else "folder"
    meant = [f"experiment={module}"] if with_own else [f"experiment={other}", f"data={choice}"]
    raise CompactHydraException(
        f"data={choice} without an experiment would train with the settings of the emoji: pictures of 96 x 96 pixels. "
        f"Give python train.py {' '.join(meant + data)}, or experiment=emoji if that is what you want"
    )
