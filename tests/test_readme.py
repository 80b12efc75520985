"""The README stays true: what it names is there, and the overrides it shows compose."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRAIN_COMMANDS = re.findall(r"^python train\.py ([^#\n]*)", README, flags=re.M)


def test_there_are_commands_to_check():
    assert len(TRAIN_COMMANDS) >= 5


@pytest.mark.parametrize("command", TRAIN_COMMANDS)
def test_train_commands_compose(command):
    overrides = [word for word in command.split() if "=" in word]
    # A sweep's lists compose with their first value.
    overrides = [re.sub(r"=([^\[,]*),.*", r"=\1", word) for word in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert "trainer" in compose("train", overrides)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:dml|conf|docs|tests)/[\w/.]*\w", README))))
def test_named_paths_exist(path):
    if "mine" not in path:
        assert (ROOT / path).exists()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, flags=re.M)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
