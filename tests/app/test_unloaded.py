"""Signatures read from source say what the real ones say, or less."""

import inspect
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from dml.app.schema import parameters_of
from dml.app.unloaded import locate_unloaded
from tests.app.conftest import ROOT, composed

TARGETS = sorted(
    {
        node["_target_"]
        for file in (ROOT / "conf").glob("*/*.yaml")
        if "_target_" in (node := OmegaConf.load(file)) and file.parent.name != "experiment"
    }
)


@pytest.mark.parametrize("target", TARGETS)
def test_as_the_real_one_or_unknown(target):
    import pydoc

    real, more = parameters_of(pydoc.locate(target))
    read, open_ended = parameters_of(locate_unloaded(target))
    assert open_ended or not more
    assert open_ended or list(read) == list(real)
    for name, parameter in read.items():
        assert parameter.default is not inspect.Parameter.empty or real[name].default is inspect.Parameter.empty
        unknown = parameter.annotation is inspect.Parameter.empty
        assert unknown or parameter.annotation == real[name].annotation, name


def test_types_and_ranges_are_read():
    for target, name in (
        ("dml.losses.nra.NRALoss", "alpha"),
        ("dml.losses.arc_face.ArcFaceLoss", "margin"),  # less than math.pi
        ("dml.retrieval.evaluator.Evaluator", "metrics"),  # by a name of its own for the type
        ("dml.models.backbones.create_backbone", "checkpoint_path"),
        ("dml.data.folder.load", "root"),
    ):
        assert parameters_of(locate_unloaded(target))[0][name].annotation is not inspect.Parameter.empty, (target, name)


def test_what_cannot_be_read_takes_anything():
    for target in ("no.such.Thing", "dml.losses.nra.Nothing", "math.sqrt", "dml.engine.stop", "", "datetime.date"):
        assert parameters_of(locate_unloaded(target)) == ({}, True)


def test_a_mistake_is_told_before_torch_is_loaded():
    code = (
        "import sys\nfrom hydra import compose, initialize_config_dir\n"
        "from dml.app.keys import check_early\nfrom dml.app.settings import Training\n"
        f"with initialize_config_dir({str(ROOT / 'conf')!r}, version_base='1.3'):\n"
        "    cfg = compose('train', overrides=sys.argv[1:])\n"
        "try:\n    check_early(cfg, Training)\nexcept ValueError as error:\n    print(error)\n"
        "print(sorted({'torch', 'pytorch_lightning', 'timm'} & sys.modules.keys()))\n"
    )
    wrong = ("loss.alpha=-1", "optimizer.lr=fast", "+loss.nosuch=1", "trainer.max_steps=0", "evaluator.ks=3")
    command = [sys.executable, "-c", code, *wrong, "protocol.monitor=val/recall@3"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert lines.pop() == "[]"
    for key in ("loss.alpha", "optimizer.lr", "loss.nosuch", "trainer.max_steps", "evaluator.ks"):
        assert sum(line.startswith(key) for line in lines) == 1, lines
    assert len(lines) == len(wrong)  # what is monitored cannot be told while ks is wrong


@pytest.mark.parametrize("wrong", ["+loss.alhpa=3", "loss.alpha=x", "transform.size=0", "backbone.name=3"])
def test_the_same_words_as_later(wrong):
    from dml.app.checks import check_config
    from dml.app.keys import check_early
    from dml.app.settings import Training

    cfg, said = composed("train", wrong), []
    for check in (lambda cfg: check_early(cfg, Training), check_config):
        with pytest.raises(ValueError) as caught:
            check(cfg)
        said.append(str(caught.value))
    assert said[0] == said[1]
