"""dml embed: files whole or not at all, resumed, by several processes as by one, broken images named."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from dml.data.own_folders import make_tagged
from dml.use import embed as module
from dml.use.embed import Share, embed
from dml.use.embeddings import Embeddings
from dml.use.images import Images, find_images
from tests.use.conftest import copy_of_run, refused, run


def test_the_file_has_paths_and_embeddings(embedded, model, tree):
    file = np.load(embedded)
    images = sorted(tree.rglob("*.png"))
    assert file["paths"].tolist() == [str(image) for image in images]
    assert torch.equal(torch.from_numpy(file["embeddings"]), model.embed(images))
    about = json.loads(file["about"].item())
    assert about["model"] == model.fingerprint and about["dimension"] == 2 and about["images"] == 42
    assert not embedded.with_name("embeddings.npz.parts").exists()


def test_parquet_holds_the_same(embedded, finished, tree, tmp_path, monkeypatch):
    run("embed", finished.folder, tree, "--out", tmp_path / "e.parquet")
    one, other = Embeddings(tmp_path / "e.parquet"), Embeddings(embedded)
    monkeypatch.setattr("dml.use.embeddings._BLOCK_ELEMENTS", 20)
    assert one.about == other.about and one.paths() == other.paths()
    blocks = list(one.blocks())
    assert len(blocks) == 5 and np.array_equal(np.concatenate(blocks), np.concatenate(list(other.blocks())))


def test_several_processes_give_what_one_gives(model, tree, tmp_path):
    images = Images.of(sorted(tree.rglob("*.png")))  # 42: blocks of 16, 16 and 10, the first process has two
    one = embed(model, images, tmp_path / "one.npz", batch_size=2, workers=0)
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            status = 1
            try:
                embed(model, images, tmp_path / "two.npz", batch_size=2, workers=0, share=Share(rank, 2, rank, 2))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert one.read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]


def test_what_was_embedded_is_not_embedded_again(model, tree, tmp_path, monkeypatch, capsys):
    images, out = Images.of(sorted(tree.rglob("*.png"))), tmp_path / "e.npz"
    assert embed(model, images, out, batch_size=2, workers=0, share=Share(1, 2)) is None  # the second of three blocks
    monkeypatch.setattr(module, "write_embeddings", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError):
        embed(model, images, out, batch_size=2, workers=0)
    assert not out.exists()
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(model.transforms, "test", lambda pixels: seen.append(1))  # would fail if it were asked
    embed(model, images, out, batch_size=2, workers=0)
    assert "Going on: 3 of 3 blocks are there" in capsys.readouterr().out and not seen
    assert embed(model, images, out, batch_size=2, workers=0) == out  # and once more
    assert "Embedded already" in capsys.readouterr().out


def test_a_file_of_other_embeddings_is_not_overwritten(embedded, finished, tree, tmp_path):
    said = refused("embed", finished.folder, tree / "class0", "--out", embedded)
    assert "is there already, of another model, other images or labels" in said
    other = copy_of_run(finished, tmp_path / "run")
    assert "is there already" in refused("embed", other, tree, "--out", embedded)


def test_broken_images_end_it_by_name_or_are_left_out_and_listed(model, tree, finished, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / "images" / f"{i}.png").write_bytes((tree / "class0" / f"{i}.png").read_bytes())
    (tmp_path / "images" / "1.png").write_bytes(b"\x89PNG broken")
    command = ("embed", finished.folder, tmp_path / "images", "--out", tmp_path / "e.npz", "--workers", 0)
    said = refused(*command)
    assert f"{tmp_path}/images/1.png: cannot identify" in said and "--skip-broken" in said
    assert "more than --max-bad 0" in refused(*command, "--skip-broken", "--max-bad", 0)
    assert not (tmp_path / "e.npz").exists()
    run(*command, "--skip-broken")
    assert "1 image cannot be decoded and left out" in capsys.readouterr().out
    assert [os.path.basename(path) for path in Embeddings(tmp_path / "e.npz").paths()] == ["0.png", "2.png", "3.png"]
    assert f"{tmp_path}/images/1.png\tcannot identify" in (tmp_path / "e.bad_images.txt").read_text()
    (tmp_path / "list.txt").write_text("images/0.png\nimages/9.png\n")
    said = refused("embed", finished.folder, tmp_path / "list.txt", "--out", tmp_path / "f.npz", "--skip-broken")
    assert "9.png cannot be read" in said  # that it is not there says nothing of the image


def test_images_are_found_in_folders_lists_and_standard_input(tree, tmp_path, monkeypatch, capsys):
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    for name in ("a/2.png", "a/1.png", "a/.hidden/3.png", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "a" / "notes.md").touch()
    (tmp_path / "l.txt").write_text("b.jpg\n\na/1.png\n")

    def found(*given):
        return [path.relative_to(tmp_path).as_posix() for path in find_images([*map(str, given)])]

    assert found(tmp_path) == ["a/1.png", "a/2.png", "b.jpg"] and "1 .md" in capsys.readouterr().err
    assert found(tmp_path / "a" / "2.png", tmp_path / "l.txt") == ["a/2.png", "b.jpg", "a/1.png"]
    make_tagged(tmp_path / "data" / "unpacked")
    (tmp_path / "outputs" / "day" / ".hydra").mkdir(parents=True)
    for name in ("data/unpacked", "outputs/day"):  # what dml writes
        Image.new("RGB", (4, 4)).save(tmp_path / name / "4.png")
    assert found(tmp_path) == ["a/1.png", "a/2.png", "b.jpg"]
    said = capsys.readouterr().err
    assert "1 caches (folders with CACHEDIR.TAG)" in said and "1 folders of runs" in said
    assert found(tmp_path / "outputs" / "day") == ["outputs/day/4.png"]
    monkeypatch.setattr("sys.stdin", iter([f"{tmp_path}/a/2.png\n"]))
    assert found("-") == ["a/2.png"]
    with pytest.raises(ValueError, match="does not exist"):
        find_images([str(tmp_path / "no")])
