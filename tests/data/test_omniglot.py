"""Omniglot in miniature: one background alphabet, two evaluation alphabets, 1-bit drawings; never the network."""

import socket
from pathlib import Path

import pytest
import torchvision.datasets.utils
from PIL import Image

from dml.data.decode import load_image
from dml.data.omniglot import load

COUNTS = {"train_classes": 2, "test_classes": 3, "train_images": 4, "test_images": 6}
CHARACTERS = {
    "images_background": ("Balinese/character01", "Balinese/character02"),
    "images_evaluation": ("Angelic/character01", "Oriya/character01", "Oriya/character02"),
}


def write_omniglot(folder: Path) -> None:
    for side, characters in CHARACTERS.items():
        for number, character in enumerate(characters):
            (folder / side / character).mkdir(parents=True)
            for drawer in (1, 2):
                image = Image.new("1", (105, 105), 1)
                image.paste(0, (40, 40, 50, 60))
                image.save(folder / side / character / f"{number:04d}_{drawer:02d}.png")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("the network is not to be used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("place", ["", "omniglot-py"])
def test_alphabets_are_split(tmp_path, place):
    write_omniglot(tmp_path / place)
    source = load(root=str(tmp_path), **COUNTS)
    assert source.train.class_names == CHARACTERS["images_background"]
    assert source.test.class_names == CHARACTERS["images_evaluation"]
    assert source.train.labels.tolist() == [0, 0, 1, 1] and source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.train.images[2].name == "0001_01.png"


def test_black_on_white(tmp_path):
    write_omniglot(tmp_path)
    image = load_image(load(root=str(tmp_path), **COUNTS).train.images[0])
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((45, 50)) == (0, 0, 0)


def test_nothing_there_and_no_network(tmp_path, monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", unreachable)
    with pytest.raises(ValueError, match=r"data.root=.*images_background, and .*\(no route to host\)\. Get .*github"):
        load(root=str(tmp_path), **COUNTS)


def test_download_is_asked_for_what_is_missing_only(tmp_path, monkeypatch):
    calls = []

    def download(url, root, filename, md5):
        calls.append((url, filename, len(md5)))
        write_omniglot(tmp_path / "other")
        (tmp_path / "other" / "images_evaluation").rename(Path(root) / "images_evaluation")

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", download)
    write_omniglot(tmp_path / "made")
    (tmp_path / "omniglot-py").mkdir()
    (tmp_path / "made" / "images_background").rename(tmp_path / "omniglot-py" / "images_background")
    assert len(load(root=str(tmp_path), **COUNTS).test) == 6
    assert [(url.rsplit("/", 1)[1], *rest) for url, *rest in calls] == [
        ("images_evaluation.zip", "images_evaluation.zip", 32)
    ]


def test_download_switched_off(tmp_path):
    with pytest.raises(ValueError, match=r"no folder images_background and no images_evaluation\. .*prepare omniglot"):
        load(root=str(tmp_path), download=False, **COUNTS)


def test_counts(tmp_path):
    write_omniglot(tmp_path)
    with pytest.raises(ValueError, match=r"data.train_classes=964 .found 2.*data.test_images=13180 .found 6"):
        load(root=str(tmp_path))


def test_empty_character_folder(tmp_path):
    write_omniglot(tmp_path)
    (tmp_path / "images_background" / "Balinese" / "character03").mkdir()
    with pytest.raises(ValueError, match=r"data.root: the class folder .*character03 holds no image"):
        load(root=str(tmp_path), **COUNTS)


def test_character_on_both_sides(tmp_path):
    write_omniglot(tmp_path)
    (tmp_path / "images_evaluation" / "Oriya").rename(tmp_path / "images_evaluation" / "Balinese")
    with pytest.raises(ValueError, match="2 test classes of omniglot are training classes too"):
        load(root=str(tmp_path), **COUNTS)
