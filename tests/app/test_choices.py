"""Choices that do not go together."""

import pytest
from hydra.errors import CompactHydraException

from dml.app.choices import refuse_settings_of_digits
from tests.app.conftest import composed


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("data=folder", "data.root=/a/b", "seed=1"), r"python train\.py experiment=folder data\.root=/a/b, or"),
        (("data=cub200",), r"python train\.py experiment=cub200, or"),
        (("data=inshop", "protocol=paper"), r"python train\.py experiment=folder data=inshop, or"),
    ],
)
def test_the_network_of_the_digits_is_for_digits(tmp_path, given, meant):
    with pytest.raises(CompactHydraException, match=rf"28 x 28 pixels into 2 dimensions.*{meant}"):
        refuse_settings_of_digits(composed("train", *given, folder=tmp_path))


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("data=mnist",),
        ("experiment=folder", "data.root=/a"),
        ("experiment=digits", "data=folder", "data.root=/a"),
        ("data=folder", "model=googlenet"),
        ("data=folder", "embedder.dim=64"),
        ("data=folder", "data._target_=mine.load"),
    ],
)
def test_who_says_anything_of_the_network_has_it(tmp_path, given):
    refuse_settings_of_digits(composed("train", *given, folder=tmp_path))
