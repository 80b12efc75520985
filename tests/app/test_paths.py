"""What a user types after a key that takes a path is what the program gets."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dml.app.paths import expand_home, quoted, readable, takes_path, texts_of


@pytest.mark.parametrize(
    "path",
    [
        "/data/Über Größe/l'été",
        "/数据/图像",
        "outputs/x=y/best.ckpt",
        "/a,b",
        "/a(1)[2]{3}$x%y#z;&!",
        '/a "b"',
        "2024",
        "true",
        "1e3",
        "{a}",
        "f(x)",
        "/plain/path-1.0_x",
        "C:\\images\\new",
    ],
)
def test_a_path_is_read_as_it_was_typed(path):
    for key in ("data.root", "+data.test_root", "ckpt_path", "resume", "hydra.run.dir"):
        assert texts_of(readable(f"{key}={path}", sweep=False)) == [path]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1).filter(lambda text: text[0] != "~"))
def test_any_text_in_quotes_is_read_as_itself(text):
    override = f"data.root={quoted('/' + text)}"
    assert texts_of(override) == ["/" + text]
    assert readable(override, sweep=False) == override == readable(override, sweep=True)


@pytest.mark.parametrize(
    "override",
    [
        "data.root=null",
        "data.root='/in quotes'",
        "data.root=/escaped\\,by\\=hand",
        "hydra.run.dir=outputs/${now:%Y-%m-%d}/x",
        "data.root=${oc.env:HOME}/x y",
        "seed=1",
        "evaluator.ks=[1, 2]",
        "~loss",
        "data.cache_dir=",
    ],
)
def test_what_hydra_reads_by_itself_stays_to_the_letter(override):  # the name of a sweep's folder comes of it
    assert readable(override, sweep=False) == override


def test_in_a_sweep_a_comma_separates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for override in ("seed=0,1", "data.root=/a, /b", "data.root=glob(*)", "data.root=choice(a,b)", "data.root='/a,b'"):
        assert readable(override, sweep=True) == override
    assert readable("data.root=/ä,/b c,l'été", sweep=True) == r"data.root='/ä',/b c,'l\'été'"
    Path("ä,b").mkdir()  # unless a folder has that very name
    assert readable("data.root=ä,b", sweep=True) == "data.root='ä,b'"


def test_several_values_without_a_sweep_are_refused():
    with pytest.raises(ValueError, match=r"a list is evaluator\.ks=\[1,2\], a sweep over them needs -m"):
        readable("evaluator.ks=1,2", sweep=False)
    with pytest.raises(ValueError, match=r"^loss=nra,triplet has several values: a sweep over them needs -m"):
        readable("loss=nra,triplet", sweep=False)


def test_what_the_grammar_refuses_is_text():
    assert texts_of(readable("evaluator.ks=[1,2", sweep=False)) == ["[1,2"]
    assert texts_of(readable("data.root='/l'été'", sweep=False)) == ["/l'été"]  # quotes with one in them


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/zoë")
    assert texts_of(readable("data.root=~/bilder", sweep=False)) == ["/home/zoë/bilder"]
    assert readable("data.root=~/a,/b", sweep=True) == "data.root='/home/zoë/a',/b"
    config = {"data": {"root": "~/x", "name": "~/x", "test_root": "${data.root}"}, "resume": "~", "file": "???"}
    expanded = OmegaConf.create(config)
    expand_home(expanded)
    del expanded["file"]
    assert OmegaConf.to_container(expanded, resolve=True) == {
        "data": {"root": "/home/zoë/x", "name": "~/x", "test_root": "/home/zoë/x"},
        "resume": "/home/zoë",
    }


def test_keys_that_take_paths():
    taken = ("data.root", "data.train_root", "data.cache_dir", "ckpt_path", "backbone.checkpoint_path", "resume")
    assert all(map(takes_path, (*taken, "hydra.run.dir", "hydra.sweep.dir")))
    assert not any(map(takes_path, ("loss.alpha", "backbone.name", "rooted", "checkpoint_minutes", "data.paths")))


def test_hydras_own_folders_are_never_swept_over():
    assert texts_of(readable("hydra.sweep.dir=out/a,b", sweep=True)) == ["out/a,b"]
