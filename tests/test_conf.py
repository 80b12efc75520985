"""Every file under conf/ composes, builds what it names, and says what the code's own defaults say."""

import inspect
import pydoc
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from PIL import Image

from dml.app.build import OUR_KEYS
from dml.app.checks import check_config
from dml.app.make import make
from dml.app.settings import LATER, Optimizing, without
from dml.data.dataset import Source
from dml.models.images import images_of
from tests.app.conftest import composed, train, write_images
from tests.data.test_transforms import in_test, in_training

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"


def choices(group):
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert found, group
    return found


def resolved(group, choice, *overrides):
    """The node of one YAML, composed without any other."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(f"{group}/{choice}", overrides=list(overrides))
    return OmegaConf.to_container(cfg, resolve=True)[group]


def filled(group, choice):
    """The node of one YAML in a run of GoogLeNet, whose keys that are null follow the backbone."""
    cfg = composed("train", "model=googlenet", f"{group}={choice}", "backbone.pretrained=false")
    check_config(cfg)
    return OmegaConf.to_container(cfg[group], resolve=True)


def test_every_group_is_tested_here():
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {
        *("loss", "sampler", "evaluator", "backbone", "embedder", "optimizer", "scheduler", "transform", "protocol"),
        *("logger", "callbacks", "data", "loader", "trainer", "model", "method", "experiment", "hydra"),
    }


@pytest.mark.parametrize("part", ["launcher", "sweeper"])
def test_launchers_and_sweepers_compose(part):  # tests/app/test_sweep.py runs them
    for choice in choices(f"hydra/{part}"):
        node = composed("train", f"hydra/{part}={choice}", hydra=True).hydra[part]
        assert OmegaConf.select(node, "_target_").startswith("hydra_plugins.")


@pytest.mark.parametrize("choice", choices("loss"))
def test_loss(choice):
    node = resolved("loss", choice)
    groups = [2] * len(node.get("ratios", "ab"))
    # What the file leaves open is a size that data and embedder fill in.
    loss = make(node, **{key: groups if key == "groups" else 4 for key in LATER if node.get(key, 4) is None})
    width = sum(groups) if "groups" in node else 4
    embeddings = torch.randn(12, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = loss(embeddings, torch.arange(12) // 3)
    value.backward()
    assert value.shape == () and value.isfinite() and embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("choice", choices("loss"))
def test_loss_repeats_the_defaults_of_its_class(choice):
    node = resolved("loss", choice)
    parameters = dict(inspect.signature(pydoc.locate(node.pop("_target_"))).parameters)
    if "losses" in parameters:  # it wraps some, each of which has a file of its own and a weight
        losses, weights = ((parameters.pop(key), node.pop(key))[1] for key in ("losses", "weights"))
        assert [resolved("loss", "smooth_ap"), resolved("loss", "calibration")] == list(losses.values())
        assert losses.keys() == weights.keys() and set(weights.values()) == {1.0}
    if "loss" in parameters:  # it wraps another, which has a file of its own
        assert parameters.pop("loss").default is inspect.Parameter.empty
        assert node.pop("loss") == resolved("loss", "contrastive")
    defaults = {key: None if p.default is p.empty else p.default for key, p in parameters.items()}
    assert node == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


def test_every_loss_has_its_three_files():
    configs = set(choices("loss"))
    assert {path.stem for path in ROOT.glob("dml/losses/*.py")} - {"__init__"} == configs
    tests = {path.stem.removeprefix("test_") for path in ROOT.glob("tests/losses/test_*.py")}
    assert tests - {"properties"} == configs
    for name in configs:
        assert resolved("loss", name)["_target_"].startswith(f"dml.losses.{name}.")


@pytest.mark.parametrize("choice", choices("sampler"))
def test_sampler(choice):
    sampler = make(resolved("sampler", choice), labels=np.arange(1000) // 10)
    assert len(next(iter(sampler))) == 128
    if choice == "shuffled":
        return
    # Beside the rest it takes its sizes from batch.*, the deltas that an experiment sets for all samplers.
    cfg = composed("train", f"sampler={choice}", *(f"batch.{key}=4" for key in ("classes_per_batch", "pairs")))
    assert cfg.sampler.classes_per_batch == 4


@pytest.mark.parametrize("choice", choices("evaluator"))
def test_evaluator(choice):
    evaluate = make(resolved("evaluator", choice))
    labels = np.arange(40) // 4
    assert evaluate(np.eye(10)[labels] + 0.01, labels)["recall@1"] == 1


# What embedders that need a certain network need of a small one, on small images.
GOOGLENET = ("backbone=googlenet", "backbone.pretrained=false")
NETWORK_OF = {"cascade": (*GOOGLENET, "embedder.tap_pool=null"), "attention": GOOGLENET}


@pytest.mark.parametrize("choice", choices("backbone"))
def test_backbone_and_embedder(choice):
    node = resolved("backbone", choice, "backbone.pretrained=false")
    size = images_of(node["name"]).size
    for head in set(choices("embedder")) - set(NETWORK_OF):
        with torch.device("meta"):
            embedder = make(resolved("embedder", head), backbone=make(node)).eval()
            assert embedder.join(embedder(torch.zeros(1, 3, size, size, dtype=torch.uint8))).shape == (1, 512)


@pytest.mark.parametrize("head", NETWORK_OF)
def test_embedders_of_a_certain_network(head):
    backbone = make(resolved("backbone", "googlenet", "backbone.pretrained=false"))
    embedder = make(resolved("embedder", head, *NETWORK_OF[head][2:]), backbone=backbone).eval()
    with torch.no_grad():
        columns = embedder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert embedder.join(columns).shape == (1, embedder.dim)
    with pytest.raises(ValueError, match=r"^embedder"):
        make(resolved("embedder", head), backbone=make(resolved("backbone", "convnet")))


@pytest.mark.parametrize("choice", choices("optimizer"))
def test_optimizer(choice):
    weight = torch.nn.Parameter(torch.ones(2))
    node = without(resolved("optimizer", choice), Optimizing)
    optimizer = make({**node, "_partial_": True})([weight])
    weight.sum().backward()
    optimizer.step()
    assert (weight < 1).all()


@pytest.mark.parametrize("steps", [2, 10, 100])
@pytest.mark.parametrize("choice", choices("scheduler"))
def test_scheduler(choice, steps):
    node = resolved("scheduler", choice, f"+trainer.max_steps={steps}", "+optimizer.lr=0.1")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    if choice == "none":
        assert node == {}
        return
    scheduler = make(node, optimizer=optimizer)
    rates = []
    for _ in range(steps):  # Lightning steps it after the last batch too
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([0.5] if choice == "plateau" else []))  # a metric that never gets better
    assert all(0 <= rate <= 0.1 for rate in rates)
    assert steps < 100 or (max(rates) == pytest.approx(0.1) and rates[-1] < 0.001)


@pytest.mark.parametrize("choice", choices("transform"))
def test_transform(choice):
    node = filled("transform", choice)
    transforms = make(node)
    image = Image.new("RGB", (300, 200), (9, 9, 9))
    for transform in (in_training(transforms), in_test(transforms)):
        result = transform(image)
        assert result.dtype == torch.uint8 and result.shape == (3, node["size"], node["size"])


def test_the_papers_transform():
    # 512 x 300 pixels: 256 at the larger side, so 150 at the other; 37 lines above and below make a crop of 224.
    pixels = np.random.default_rng(0).integers(1, 256, (300, 512, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    small = np.asarray(image.resize((256, 150), Image.Resampling.BILINEAR))
    padded = np.zeros((224, 256, 3), dtype=np.uint8)
    padded[37:187] = small

    def crops(transform):
        return transform(image).movedim(-3, -1).numpy()

    node = filled("transform", "paper")
    assert (node["size"], node["resize"], node["interpolation"]) == (224, 256, "bilinear")
    assert np.array_equal(crops(in_test(make(node))), padded[:, 16:240])
    left, right, centre = padded[:, :224], padded[:, 32:], padded[:, 16:240]
    five = [left, right, left, right, centre]  # the upper corners are the lower ones
    expected = np.stack([*five, *(np.stack(five[i])[:, ::-1] for i in (1, 0, 3, 2, 4))])
    assert np.array_equal(crops(in_test(make(node, ten_crop=True))), expected)
    # In training the place is random, and half of the crops are mirrored.
    train, seen = in_training(make(node)), set()
    torch.manual_seed(0)
    for _ in range(40):
        crop = crops(train)
        top = int(np.flatnonzero(crop.any(axis=(1, 2)))[0])
        places = [(x, flip) for x in range(33) for flip in (1, -1)
                  if np.array_equal(crop[top : top + 150], small[:, x : x + 224][:, ::flip])]  # fmt: skip
        assert len(places) == 1 and crop.any(axis=(1, 2)).sum() == 150
        seen.add((top, *places[0]))
    assert len(seen) > 30 and {flip for _, _, flip in seen} == {1, -1}


def test_protocols_have_the_same_keys():
    nodes = {choice: resolved("protocol", choice) for choice in choices("protocol")}
    assert len({tuple(node) for node in nodes.values()}) == 1
    assert all(node["name"] == choice and not node["watch_test"] for choice, node in nodes.items())


@pytest.mark.parametrize("choice", choices("trainer"))
def test_trainer(choice):
    trainer = make(resolved("trainer", choice, "trainer.accelerator=cpu", "trainer.devices=1"), logger=False)
    assert trainer.max_steps == 1000 and not trainer._accelerator_connector.use_distributed_sampler


@pytest.mark.parametrize("choice", choices("logger"))
def test_logger(choice, tmp_path):
    node = resolved("logger", choice)
    assert (node == {}) == (choice == "none")
    if choice in ("tensorboard", "mlflow") and find_spec(choice) is None:
        with pytest.raises(ValueError, match=rf"^logger={choice} is not installed: pip install .*\[{choice}\]"):
            check_config(composed("train", f"logger={choice}"))
        return
    if node:
        assert make(node, save_dir=str(tmp_path)).save_dir == str(tmp_path)


@pytest.mark.parametrize("choice", choices("data"))
def test_data(choice, tmp_path):
    node = resolved("data", choice)
    ours = set(OUR_KEYS) - ({"on_error", "max_bad"} if choice in ("digits", "emoji", "mnist") else set())
    assert ours <= set(node) and node["cache"] == "none"
    settings = {key: value for key, value in node.items() if key not in ours}
    load = pydoc.locate(settings["_target_"])
    assert set(settings) - {"_target_"} == set(inspect.signature(load).parameters)
    if choice == "folder":
        settings["root"] = str(write_images(tmp_path / "tree", classes=8, images=2))
    elif choice == "table":
        images = sorted(write_images(tmp_path / "tree", classes=8, images=2).rglob("*.png"))
        lines = ["path,label", *(f"{path},{path.parent.name}" for path in images)]
        settings["file"] = str(tmp_path / "table.csv")
        Path(settings["file"]).write_text("\n".join(lines))
    elif choice not in ("digits", "emoji"):
        pytest.skip("its files are not at hand")
    source = make(settings)
    assert isinstance(source, Source) and len(source.train) and len(source.test)
    rest, validation = source.hold_out(0.5)
    assert len(rest.train) + len(validation) == len(source.train)


OFFICIAL = {
    "cub200": {"train_images": 5864, "train_classes": 100, "test_images": 5924, "test_classes": 100},
    "cars196": {"train_images": 8054, "train_classes": 98, "test_images": 8131, "test_classes": 98},
    "sop": {"train_images": 59551, "train_classes": 11318, "test_images": 60502, "test_classes": 11316},
    "inshop": {
        **{"train_images": 25882, "train_classes": 3997},
        **{"test_images": 14218, "gallery_images": 12612, "test_classes": 3985},
    },
    "omniglot": {"train_images": 19280, "train_classes": 964, "test_images": 13180, "test_classes": 659},
}


@pytest.mark.parametrize("choice", OFFICIAL)
def test_benchmarks_are_held_to_their_official_counts(choice):
    expected = OFFICIAL[choice]
    group = "experiment" if choice in choices("experiment") else "data"
    node = composed("train", f"{group}={choice}").data
    assert {key: node[key] for key in expected} == expected
    assert {key for key in node if key.endswith(("_images", "_classes"))} == set(expected)
    # dml.data.prepare asks without a config.
    parameters = inspect.signature(pydoc.locate(node["_target_"])).parameters
    assert {key: parameters[key].default for key in expected} == expected


@pytest.mark.parametrize("choice", choices("model"))
def test_model_is_a_backbone_with_its_input_size(choice):
    # The experiment chooses a model; the choice on the command line wins.
    cfg = composed("train", f"model={choice}", "backbone.pretrained=false")
    assert cfg.backbone.name == OmegaConf.load(CONF / "backbone" / f"{choice}.yaml").name
    check_config(cfg)
    assert (cfg.embedder.dim, cfg.transform.size) == {
        "convnet": (2, 28),
        "convnet4": (64, 28),
        "dinov3_s": (512, 256),
        "efficientnet_lite0": (128, 96),
    }.get(choice, (512, 224))


@pytest.mark.parametrize("choice", choices("method"))
def test_method_names_its_loss(choice):
    cfg = composed("train", f"method={choice}")
    loss = cfg.loss._target_.split(".")[-2]
    assert loss in choices("loss") and (loss == choice or choice not in choices("loss"))
    assert cfg.method_name == choice
    assert cfg.sampler.samples_per_class == (2 if choice.startswith("npair") else 5)


def test_every_loss_has_a_method():
    assert set(choices("loss")) <= set(choices("method"))  # others have a loss in other settings, or in another network


@pytest.mark.parametrize("method", choices("method"))
def test_method_runs(method, tmp_path):
    embedder = composed("train", f"method={method}").embedder._target_.split(".")[-2]
    given = [f"method={method}", "trainer.max_steps=2", "trainer.val_check_interval=2", *NETWORK_OF.get(embedder, ())]
    if embedder in NETWORK_OF:  # a larger one than the digits': of few images
        given += ["data=folder", f"data.root={write_images(tmp_path / 'tree', classes=8, images=4)}"]
        given += ["data.val_fraction=0.5", "evaluator.ks=[1]", "loader.workers=0"]
        given += ["batch.classes_per_batch=2", "batch.samples_per_class=3"]
    metrics = train(tmp_path / "run", *given).metrics
    assert {"test/recall@1", "test/map"} <= set(metrics)
    assert all(0 <= value <= 1 for value in metrics.values())


# Recipes of other papers than ours, of networks that take seconds an image.
PAPERS = {
    *("proxy_anchor", "multi_similarity", "soft_triple", "margin"),
    *("normalized_softmax", "recall_at_k"),
}


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiment_runs(experiment, tmp_path):
    # On data at hand, in small batches and without downloads.
    small = ["trainer.max_steps=2", "trainer.val_check_interval=2", "backbone.pretrained=false", "loader.workers=0"]
    if not composed("train", f"experiment={experiment}").data._target_.startswith("dml.data.digits."):
        tree = write_images(tmp_path / "tree", classes=8, images=4)
        small += ["data=folder", f"data.root={tree}", "data.val_fraction=0.5", "evaluator.ks=[1]"]
        small += ["batch.classes_per_batch=2", "batch.samples_per_class=3", "batch.pairs=2"]
    if experiment in PAPERS:
        small += ["backbone.name=test_resnet", "transform.size=64", "transform.resize=64", "trainer.max_epochs=-1"]
        small += ["sampler.size=4"] if "size" in composed("train", f"experiment={experiment}").sampler else []
    elif experiment.partition("_")[2]:  # of a paper on a data set, whose own experiment runs in full size
        small += ["transform.size=64", "transform.resize=72", "transform.crop_to_box=false"]
        small += ["embedder.tap_pool=null"] * ("hdc" in experiment)
    metrics = train(tmp_path / "run", f"experiment={experiment}", *small).metrics
    assert "test/recall@1" in metrics
    assert all(0 <= value <= 1 for value in metrics.values())


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiment_says_what_it_is(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ") and "python train.py" in text.partition("defaults:")[0]


def test_the_command_line_wins():
    cfg = composed("train", "method=triplet", "loss=contrastive", "loss.margin=0.3")
    assert cfg.loss._target_.endswith("ContrastiveLoss") and cfg.loss.margin == 0.3
    cfg = composed("train", "optimizer.lr=0.25", "sampler.samples_per_class=3", "optimizer=sgd")
    assert cfg.optimizer.lr == 0.25 and cfg.sampler.samples_per_class == 3
    assert cfg.optimizer._target_ == "torch.optim.SGD"
    cfg = composed("train", "method=npair", "sampler=groups", "scheduler=none", "loss.l2_weight=0")
    assert cfg.sampler.samples_per_class == 5 and cfg.scheduler == {} and cfg.loss.l2_weight == 0
    cfg = composed("train", "protocol=paper", "trainer.max_steps=7", "embedder.dim=64", "backbone=convnet4")
    assert cfg.protocol.validate is False and cfg.trainer.max_steps == 7
    assert cfg.embedder.dim == 64 and cfg.backbone.name == "convnet4"


def test_a_choice_alone_keeps_the_rest_of_the_experiment():
    cfg = composed("train", "protocol=paper")
    # The experiment names a validation metric; the paper's protocol looks at none (and does not read the key).
    assert cfg.protocol.validate is False and cfg.evaluator.normalize is False and cfg.optimizer.lr == 0.003


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("loss=nosuch", "nosuch"),
        ("method=nosuch", "nosuch"),
        ("loss.alhpa=3", "alhpa"),
        ("nosuch.key=3", "nosuch"),
        ("trainer.max_step=3", "max_step"),
        ("method=triplet loss.alpha=3", "alpha"),
    ],
)
def test_an_unknown_name_fails_and_is_named(override, named):
    with pytest.raises(HydraException) as caught:
        composed("train", *override.split())
    assert named in str(caught.value)
