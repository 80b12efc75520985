"""A pretrained network as it is: evaluate.py without a checkpoint."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from dml.app.command import checkpoint_given, is_zero_shot
from dml.app.evaluation import run_evaluate
from dml.app.keys import check_early
from dml.app.make import make
from dml.app.settings import Training
from dml.data import digits
from dml.models.backbones import create_backbone
from dml.retrieval.evaluator import Evaluator
from tests.app.conftest import QUIET, composed


def test_the_features_are_tested_without_a_head(tmp_path):
    torch.manual_seed(3)
    backbone = create_backbone(name="convnet4").eval()
    torch.save(backbone.state_dict(), tmp_path / "weights.pt")
    given = ("model=convnet4", "data=digits", f"backbone.checkpoint_path={tmp_path / 'weights.pt'}")
    cfg = composed("zero_shot", *QUIET, *given, folder=tmp_path / "run")
    metrics = run_evaluate(cfg)
    test = digits.load().test
    transform = make(OmegaConf.to_container(cfg.transform, resolve=True))
    images = torch.stack([transform.test(transform.decode(image, None)) for image in test.images])
    mean, std = (torch.tensor(backbone.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = backbone((images / 255 - mean) / std)
    by_hand = Evaluator(ks=[1, 2, 4, 8])(features, torch.from_numpy(test.labels))
    assert metrics == pytest.approx({f"test/{name}": value for name, value in by_hand.items()}, abs=3e-3)
    row = json.loads((tmp_path / "run" / "evaluation.json").read_text())["row"]
    assert (row["method"], row["dimension"], row["steps"], row["loss"]) == ("zero-shot", 64, 0, None)
    assert row["weights"].startswith(str(tmp_path)) and row["parts"].keys() == {"test"}


def test_which_command_it_is():
    assert is_zero_shot(["model=resnet50", "data=cub200"]) and is_zero_shot(["backbone.name=vit_tiny_patch16_224"])
    assert not is_zero_shot(["ckpt_path=best.ckpt", "model=resnet50"]) and not is_zero_shot(["data=cub200"])
    with pytest.raises(ValueError, match=r"ckpt_path=FILE is needed: .*A pretrained network as it is: model=NAME"):
        checkpoint_given(["data=cub200"])


def test_a_mistake_is_told_as_in_training():
    with pytest.raises(ValueError, match=r"^evaluator\.kss is no key"):
        check_early(composed("zero_shot", "+evaluator.kss=[1]"), Training)
