"""The only call of hydra.utils.instantiate."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException


def make(node: Any, **arguments: Any) -> Any:
    """Instantiate a config node; a user's mistake in it surfaces as the ValueError that the part itself raised."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, MisconfigurationException):  # Lightning's word for it
            raise ValueError(str(error.__cause__)) from error
        raise
