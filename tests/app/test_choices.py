"""Choices that do not go together."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException

from dml.app.choices import refuse_settings_of_emoji
from tests.app.conftest import ROOT


def choose(*given):
    """The config of a command, which says itself which experiment it wants."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=list(given), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("data=folder", "data.root=/a/b", "seed=1"), r"python train\.py experiment=folder data\.root=/a/b, or"),
        (("data=cub200",), r"python train\.py experiment=cub200, or"),
        (("data=digits",), r"python train\.py experiment=digits, or"),
        (("data=mnist",), r"python train\.py experiment=digits data=mnist, or"),
        (("data=inshop", "protocol=paper"), r"python train\.py experiment=folder data=inshop, or"),
    ],
)
def test_the_settings_of_the_emoji_are_for_emoji(given, meant):
    with pytest.raises(CompactHydraException, match=rf"settings of the emoji.*{meant}"):
        refuse_settings_of_emoji(choose(*given))


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("experiment=digits", "data=mnist"),
        ("experiment=folder", "data.root=/a"),
        ("experiment=emoji", "data=folder", "data.root=/a"),
        ("data=folder", "model=googlenet"),
        ("data=folder", "embedder.dim=64"),
        ("data=folder", "data._target_=mine.load"),
    ],
)
def test_who_says_anything_of_the_network_has_it(given):
    refuse_settings_of_emoji(choose(*given))


def test_the_default_fine_tunes_and_figure4_is_of_the_digits():
    cfg = choose()
    assert cfg.data._target_ == "dml.data.emoji.load" and cfg.backbone.pretrained and cfg.method_name == "nra"
    assert choose("experiment=emoji").optimizer == cfg.optimizer
    assert re.search(r"train\.py -m experiment=digits method=", (ROOT / "Makefile").read_text())
