"""What comes from somebody else runs no code and reads no secret; what a run writes holds none."""

import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict

from dml.app.checkpoint import read_to_evaluate
from dml.app.evaluation import run_evaluate
from dml.app.secrets import NoSecrets, secrets_in
from dml.app.trust import is_harmless
from dml.data.transforms import Transforms
from dml.models.backbones import create_backbone
from dml.report.figures import draw_embedding
from tests.app.conftest import QUIET, composed, evaluate, train
from tests.app.test_processes import SECRET, end, start
from tests.test_conf import CONF, choices


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.os.system",
        "torch.sys.exit",
        "torch.load",
        "torch.hub.load",
        "torch.hub.load_state_dict_from_url",
        "torch.jit.load",
        "torch.compile",
        "torch.package.PackageImporter",
        "torch.utils.cpp_extension.load_inline",
        "torch.utils.benchmark.Timer",
        "torch.utils.data.DataLoader",
        "torch._dynamo.eval_frame.OptimizedModule",
        "torch.nn.Module.load_state_dict",
        "torch.nn.modules.module.Path",
        "timm.create_model",
        "timm.models.load_checkpoint",
        "torchvision.models.resnet18",
        "torchvision.datasets.ImageFolder",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "dml.app.launch.os.system",
        "dml.app.run.run_train",
        "dml.app.launch.run_as_command",
        "dml.app.checkpoint.read_checkpoint",
        "dml.app.make.make",
        "dml.app.make.instantiate",
        "dml.data.download.fetch",
        "dml.data.download.unpack",
        "dml.data.cache.cache_images",
        "dml.data.digits.np.load",
        "dml.losses.nra",
        "dml",
        "dml.nosuch",
        "",
        3,
        None,
        ["os.system"],
    ],
)
def test_what_a_stranger_may_not_name(target):
    assert not is_harmless(target)


def test_what_one_of_the_packages_only_hands_on_is_not_its_own(monkeypatch):
    monkeypatch.setattr(
        torch.nn, "Foreign", type("Foreign", (torch.nn.Identity,), {"__module__": "other"}), raising=False
    )
    assert not is_harmless("torch.nn.Foreign") and is_harmless("torch.nn.Identity")


def test_what_a_stranger_may_name():
    groups = ("data", "transform", "backbone", "embedder", "loss", "sampler", "evaluator", "optimizer", "scheduler")
    files = [CONF / group / f"{choice}.yaml" for group in groups for choice in choices(group)]
    ours = {OmegaConf.load(file).get("_target_") for file in files} - {None}
    libraries = {"torch.nn.Identity", "torch.optim.Adam", "torch.optim.lr_scheduler.StepLR",
                 "torchvision.models.GoogLeNet", "timm.models.resnet.ResNet"}  # fmt: skip
    assert len(ours) > 15
    assert {target for target in ours | libraries if not is_harmless(target)} == set()


@pytest.fixture
def stranger(finished, tmp_path):
    """Write a checkpoint of a finished run with another config; returns its path."""

    def write(change):
        checkpoint = finished.checkpoint()
        config = checkpoint["dml_config"] = OmegaConf.create(checkpoint["dml_config"])
        with open_dict(config):
            change(config)
        checkpoint["dml_config"] = OmegaConf.to_container(config, resolve=False)
        torch.save(checkpoint, tmp_path / "stranger.ckpt")
        return tmp_path / "stranger.ckpt"

    return write


def test_a_strangers_config_is_refused_with_all_that_is_wrong_in_it(stranger, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    ran = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(tmp_path / "ran")]}}
    groups = ("data", "transform", "evaluator", "backbone", "embedder", "loss", "sampler", "optimizer", "scheduler")
    wrong = {
        **{f"{group}._target_": ("os.system", "=os.system is none of") for group in groups},
        "loss.loss": (ran, "._target_=pathlib.Path.touch is none of"),
        "loader.a": ([{"b": ran}], ".0.b._target_=pathlib.Path.touch is none of"),
        "data._args_": (["/etc"], " is a key by which Hydra"),
        "data.defaults": ([{"/trainer@x": "ddp"}], " is a key by which Hydra"),
        "evaluator._partial_": (True, " is a key by which Hydra"),
        "data.split_seed": ("${oc.env:WANDB_API_KEY}", "=${oc.env:WANDB_API_KEY} is an interpolation"),
        "learning_rates.a": ("${seed}", "=${seed} is an interpolation"),
    }

    def change(config):
        for key, (value, _) in wrong.items():
            OmegaConf.update(config, key, value, force_add=True)

    path = stranger(change)
    with pytest.raises(ValueError) as caught:
        evaluate(tmp_path / "run", path)
    *lines, last = str(caught.value).splitlines()
    assert "trust=true" in last
    for key, (_, said) in wrong.items():
        assert any(line.startswith(f"ckpt_path={path}: {key}{said}") for line in lines), key
    assert len(lines) == len(wrong) + 4  # the path in each touch, and its arguments
    # Nor does what comes after Hydra take it, however it got there.
    ours = ("data=digits", "transform=characters", "loader=default", "evaluator=default")
    cfg = composed("evaluate", *QUIET, f"ckpt_path='{path}'", *ours, folder=tmp_path / "run")
    with pytest.raises(ValueError, match=r"loss\._target_=os\.system is none of"):
        run_evaluate(cfg)
    assert not (tmp_path / "ran").exists() and {file.name for file in (tmp_path / "run").iterdir()} <= {".lock"}


def test_a_config_that_holds_itself_is_refused(stranger, finished, tmp_path):
    path = stranger(lambda config: None)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["dml_config"]["loader"]["again"] = checkpoint["dml_config"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="holds itself"):
        evaluate(tmp_path / "run", path)


class Own(Transforms):
    """A part of a package that is none of the five."""


def test_trust_lets_other_packages_in(stranger, finished, tmp_path):
    path = stranger(lambda config: OmegaConf.update(config, "transform._target_", f"{__name__}.Own"))
    with pytest.raises(ValueError, match=r"transform\._target_=tests\.app\.test_trust\.Own"):
        evaluate(tmp_path / "run", path)
    last = finished.folder / "checkpoints" / "last.ckpt"
    assert evaluate(tmp_path / "run", path, "trust=true").metrics == evaluate(tmp_path / "again", last).metrics


def test_a_wrong_value_in_a_checkpoint_is_one_line(stranger, tmp_path):
    path = stranger(lambda config: OmegaConf.update(config, "embedder.dim", "two"))
    with pytest.raises(ValueError, match=r"^embedder\.dim=two is not possible: it must be a whole number"):
        evaluate(tmp_path / "run", path)
    path = stranger(lambda config: config.pop("protocol"))
    with pytest.raises(ValueError, match=r"^protocol is missing"):
        evaluate(tmp_path / "run", path)


def test_evaluation_reads_no_weights_and_writes_no_cache_because_a_checkpoint_says_so(stranger, finished, tmp_path):
    def change(config):
        config.backbone.checkpoint_path = str(tmp_path / "evil.pth")
        config.backbone.pretrained = True
        config.data.cache, config.data.cache_dir = "disk", str(tmp_path / "cache")
        config.logger = {"_target_": "os.system", "command": "true"}  # evaluation has none

    (tmp_path / "evil.pth").write_text("no weights")
    run = evaluate(tmp_path / "run", stranger(change))
    assert run.metrics == evaluate(tmp_path / "again", finished.folder / "checkpoints" / "last.ckpt").metrics
    caches = [
        read_to_evaluate(tmp_path / "stranger.ckpt", trust)["dml_config"]["data"]["cache"] for trust in (False, True)
    ]
    assert caches == ["none", "disk"]


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_pickle_runs_wherever_a_file_is_read(finished, tmp_path):
    ran = tmp_path / "ran"
    torch.save({**finished.checkpoint(), "callbacks": Evil(ran)}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"resume=\S*evil\.ckpt cannot be read"):
        train(tmp_path / "run", f"resume={tmp_path / 'evil.ckpt'}")
    torch.save({"conv1.weight": Evil(ran)}, tmp_path / "evil.pth")
    for name in ("convnet", "googlenet"):
        with pytest.raises(ValueError, match=r"backbone\.checkpoint_path=\S*evil\.pth does not hold weights"):
            create_backbone(name=name, checkpoint_path=str(tmp_path / "evil.pth"))
    np.savez(tmp_path / "test_embeddings.npz", embeddings=np.ones((2, 2)), labels=np.zeros(2, int),
             class_names=np.array([Evil(ran)], dtype=object))  # fmt: skip
    with pytest.raises(ValueError, match="allow_pickle=False"):
        draw_embedding(tmp_path, None)
    assert not ran.exists()
    with zipfile.ZipFile(tmp_path / "test_embeddings.npz") as archive, archive.open("class_names.npy") as file:
        np.load(file, allow_pickle=True)
    assert ran.exists()  # it would have


def test_a_secret_in_a_config_is_refused_by_key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    config = {"a": {"api_key": "x"}, "b": [f"key {SECRET}"], "c": {"token": None, "class_token": "x"}, "d": "ok",
              "wandb_api_key": "y", "e": {"password": 12345}}  # fmt: skip
    lines = list(secrets_in(config))
    assert [line.split()[0] for line in lines] == ["a.api_key", "b.0", "wandb_api_key", "e.password"]
    assert not any(SECRET in line for line in lines)


@pytest.mark.parametrize("override", [
    "+logger.settings.api_key=hidden", "+logger.settings={api_key:hidden}", "+hydra.job.env_set.WANDB_API_KEY=hidden",
    f"+logger.notes={SECRET}",
])  # fmt: skip
def test_a_secret_is_refused_before_hydra_writes_it(monkeypatch, override):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    cfg = composed("train", override, hydra=True)
    for look in (NoSecrets().on_run_start, NoSecrets().on_multirun_start):
        with pytest.raises(SystemExit, match="holds a secret") as caught:
            look(cfg)
        assert "hidden" not in str(caught.value) and SECRET not in str(caught.value)
    # Of a sweep only the overrides are known at that point.
    swept = composed("train", hydra=True)
    swept.hydra.overrides.task.append(override)
    with pytest.raises(SystemExit, match="holds a secret"):
        NoSecrets().on_multirun_start(swept)


def test_a_secret_on_the_command_line_is_in_no_file(tmp_path):
    code, out, err = end(start("train.py", "+logger.settings.api_key=hidden", f"hydra.run.dir={tmp_path / 'run'}"))
    assert code == 1 and err.startswith("logger.settings.api_key holds a secret")
    assert "Traceback" not in out + err and not [*tmp_path.iterdir()]


def test_a_value_from_the_environment_that_is_the_key_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.raises(ValueError, match=r"^logger\.name holds a secret") as caught:
        train(tmp_path, "logger=csv", "logger.name=${oc.env:WANDB_API_KEY}")
    assert SECRET not in str(caught.value) and not [*tmp_path.iterdir()]
