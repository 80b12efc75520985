"""The command line: flags anywhere, and every refusal one line that says what would be right."""

import sys

import hydra
import pytest
from hydra._internal import utils
from hydra.errors import CompactHydraException

from dml.app.command import arranged, checkpoint_given, run_command, said
from dml.app.errors import OtherRunException
from dml.app.keys import check_early
from dml.app.paths import quoted
from dml.app.settings import Training
from tests.app.conftest import ROOT, composed


def main(*arguments, name="train"):
    """The composed config of a command, or what it is refused with."""
    seen = []
    found = hydra.main(config_path=str(ROOT / "conf"), config_name=name, version_base="1.3")(seen.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        patch.setattr(utils, "run_and_report", utils.run_and_report)  # put back at the end
        run_command(found)
    return seen


def refused(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(*arguments)
    return str(caught.value).removesuffix(
        "\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
    )


@pytest.mark.parametrize(
    "line", ["-m seed=0 a.root=ü", "seed=0 -m a.root=ü", "seed=0 a.root=ü --multirun", "--multirun seed=0 a.root=ü"]
)
def test_flags_stand_anywhere(line):
    overrides, flags = arranged(line.split())
    assert overrides == ["seed=0", "a.root='ü'"] and flags in (["-m"], ["--multirun"])


def test_flags_keep_their_values(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    overrides, flags = arranged(["--cfg", "job", "seed=1", "--config-dir=~/conf", "-p", "loss"])
    assert (overrides, flags) == (["seed=1"], ["--cfg", "job", "--config-dir=/home/x/conf", "-p", "loss"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed =1", "seed is no setting: it must be KEY=VALUE"),
        ("seed= 1", "1 is no setting: it must be KEY=VALUE"),
        ("=1", "=1 is no setting"),
        ("--seed=1", "--seed=1 is no option. Settings are given without dashes, as seed=VALUE"),
        ("--lr 0.1", "--lr is no option"),
        ("evaluator.ks=1,2", "evaluator.ks=1,2 has several values: a list is evaluator.ks=[1,2]"),
        ("loss.alhpa=2", "loss.alhpa is no key: there is alpha"),
        ("los.alpha=2", "los is no key: there is loss"),
        ("metod=nra", "metod is no key: there is method"),
        ("data.root=x", "data.root is no key: there is"),  # data=emoji has none
        ("optimizer.lr.x=1", "optimizer.lr.x is no key: there is none"),
        ("logger=null", "logger=null is no choice: there is csv, "),
        ("scheduler=false", "scheduler=false is no choice: there is none, "),
        ("loss=tripelt", "loss=tripelt is no choice: there is triplet"),
        ("experiment=digit", "experiment=digit is no choice: there is digits"),
        ("hydra/launcher=worker -m", "hydra/launcher=worker is no choice: there is workers"),
        ("+experiment=digits", "experiment is in the config already"),
        ("+experiment=emoji", "experiment is in the config already"),
        (
            "trainer.gradient_clip_val=1",
            "trainer.gradient_clip_val is not in the config yet: add it with a plus, +trainer",
        ),
        ("+loss.alpha=2", "Could not append to config"),
        ("--config-dir=/no/where", "Additional config directory '/no/where' not found"),
    ],
)
def test_one_line_says_what_would_be_right(line, message):
    told = refused(*line.split())
    assert told.startswith(message) and "\n" not in told and "hydra.cc" not in told


def test_an_error_of_ours_is_said_as_it_is():
    for kind in (CompactHydraException, OtherRunException):
        try:
            raise kind("the folder holds another run") from ValueError("the folder holds another run")
        except CompactHydraException as error:
            assert said(error) == "the folder holds another run"


def test_paths_as_typed(tmp_path):
    folder = tmp_path / "Über {Größe} l'été=1, (2)"
    (cfg,) = main("data=folder", f"data.root={folder}", f"hydra.run.dir={folder}")
    assert cfg.data.root == str(folder) and folder.is_dir()


def test_where_locks_are_missing_the_systems_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.delitem(sys.modules, "dml.locks", raising=False)
    with pytest.raises(SystemExit, match=r"^dml runs on Linux and macOS\. On Windows use WSL"):
        main("seed=1")


def test_evaluate_takes_the_folder_of_a_run(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"^ckpt_path=\S+nowhere does not exist"):
        checkpoint_given([f"ckpt_path={tmp_path}/nowhere"])
    with pytest.raises(ValueError, match=r"is a folder without checkpoints"):
        checkpoint_given([f"ckpt_path={tmp_path}"])
    with pytest.raises(ValueError, match=r"^ckpt_path=FILE is needed"):
        checkpoint_given(["seed=1"])
    assert checkpoint_given(["--help"]) is None
    folder = tmp_path / "l'été" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("last", "best"):  # the latter is what the run itself tested
        (folder / f"{name}.ckpt").touch()
        assert checkpoint_given([f"ckpt_path={quoted(str(folder.parent))}"]) == folder / f"{name}.ckpt"
        assert capsys.readouterr().out == f"Evaluating {folder / name}.ckpt\n"
    both = f"ckpt_path=[{quoted(str(folder / 'last.ckpt'))},{quoted(str(folder.parent))}]"
    assert checkpoint_given([both]) == folder / "last.ckpt"
    assert capsys.readouterr().out == f"Evaluating {folder / 'last.ckpt'}, {folder / 'best.ckpt'}\n"
    with pytest.raises(ValueError, match=r"^ckpt_path=FILE is needed.*ckpt_path=\[A,B\]"):
        checkpoint_given(["ckpt_path=[]"])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    message = refused(f"hydra.run.dir={tmp_path}/file/x")
    assert (
        message == f"{tmp_path}/file/x: Not a directory. Give another hydra.run.dir=DIR (a sweep: hydra.sweep.dir=DIR)"
    )


def test_resuming_from_nowhere_is_told_before_torch_is_loaded(tmp_path):
    cfg = composed("train", f"resume={tmp_path}/nowhere", folder=tmp_path / "run")
    with pytest.raises(ValueError, match=r"^resume=\S+nowhere does not exist$"):
        check_early(cfg, Training)
    (tmp_path / "run" / "checkpoints").mkdir()  # the run goes on with these
    check_early(cfg, Training)
