"""Schemas come from signatures: what they take, what they refuse and how, for any key and any value."""

import inspect
import math
import pydoc
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Interval, MinLen
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from dml.app.build import build_source
from dml.app.checks import check_config, check_data
from dml.app.schema import describe, fits, parameters_of, shown
from tests.app.conftest import composed, train
from tests.test_conf import CONF, choices, resolved

WRONG = {
    "loss.alpha": "abc",
    "loss.epsilon": -1,
    "+loss.nosuch": 1,
    "optimizer.lr": 0,
    "optimizer.weight_decay": "much",
    "trainer.max_steps": "ten",
    "trainer.devices": 0,
    "seed": "x",
    "batch.classes_per_batch": 2.5,
    "data.val_fraction": 2,
    "data.split_seed": -1,
    "data.cache": "disc",
    "engine.micro_batch": 0,
    "protocol.patience": -1,
    "embedder.dim": 0,
    "evaluator.ks": [],
    "evaluator.backend": "ann",
    "loader.workers": -1,
    "scheduler.warmup": 1,
    "transform.size": 0,
    "transform.fill": 256,
    "logger.flush_logs_every_n_steps": "often",
    "backbone.name": ["resnet50"],
    "checkpoint_minutes": 0,
    "threads": 0,
    "learning_rates.triplet": 0,
    "+nosuch": 1,
}


def test_all_wrong_values_are_told_at_once_and_before_the_data(tmp_path):
    overrides = [f"{'+' if 'flush' in key else ''}{key}={value}" for key, value in WRONG.items()]
    with pytest.raises(ValueError) as caught:
        train(tmp_path / "run", *overrides, "logger=csv", "data.test_fraction=0.5")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(WRONG)
    for key, value in WRONG.items():
        (line,) = [line for line in lines if line.startswith((f"{key.lstrip('+')}=", f"{key.lstrip('+')} "))]
        if key.startswith("+"):
            assert " is no key: there is " in line
        else:
            assert line.startswith(f"{key}={shown(value)} is not possible: it must be ")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("+loss.alhpa=3", "loss.alhpa is no key: there is alpha"),
        ("+sampler.seed=3", "sampler.seed cannot be set: the program does"),
        ("~embedder.freeze_bn", "embedder.freeze_bn is missing: it must be true or false"),
        ("~seed", "seed is missing: it must be a whole number from 0 to 4294967295"),
        ("~loss", "loss is missing: it must be a group with a _target_"),
        ("engine=null", "engine=null is not possible: it must be a group of compile, micro_batch, reuse_memory, ema"),
        ("loss.alpha=???", "loss.alpha is missing: give loss.alpha=..."),
        ("loss.alpha=${nosuch}", "loss.alpha cannot be resolved: Interpolation key 'nosuch' not found"),
        ("seed=${seed}", "seed cannot be resolved: Recursive interpolation detected"),
        ("loss._target_=dml.nosuch.Loss", "loss._target_=dml.nosuch.Loss is no class or function that can be found"),
        ("+loss._partial_=true", "loss._partial_ is no key: there is alpha, epsilon, detach_range"),
        ("optimizer=sgd +optimizer.nesterov=true optimizer.momentum=0",
         "optimizer: Nesterov momentum requires a momentum and zero dampening"),
        ("backbone.name=resnet50.nosuch", "backbone.name=resnet50.nosuch: resnet50 has no weights nosuch (it has "),
        ("+logger.nosuch=1", "logger.nosuch is no key: neither of Lightning's WandbLogger nor of wandb.init"),
        ("logger.settings=3", "logger.settings=3 is not possible: it must be keys of wandb.Settings"),
        ("+logger.settings.nosuch=1", "logger.settings.nosuch=1 is not possible: Extra inputs are not permitted"),
        ("+backbone.checkpoint_path=/no/where", "backbone.checkpoint_path=/no/where does not exist"),
        ("method=memory loss.loss.epsilon=0", "loss.loss.epsilon=0 is not possible: it must be"),
        ("method=memory loss@loss.loss=cross_entropy loss.loss.num_classes=3 loss.loss.embedding_dim=2",
         "loss.loss=CrossEntropyLoss is not possible: it must be a loss whose forward takes anchors"),
    ],
)  # fmt: skip
def test_one_problem_is_one_line(overrides, said):
    overrides = overrides.replace("method=memory loss.loss", "method=memory loss@loss.loss=nra loss.loss")
    overrides = overrides.replace("+backbone.checkpoint_path", "backbone.checkpoint_path")
    with pytest.raises(ValueError) as caught:
        check_config(composed("train", *overrides.split()))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=sgd", "+optimizer.nesterov=true"),
        ("optimizer._target_=torch.optim.Adam", "+optimizer.betas=[0.9,0.99]"),
        ("scheduler._target_=torch.optim.lr_scheduler.StepLR", "~scheduler.steps", "~scheduler.warmup",
         "+scheduler.step_size=3"),
        ("+backbone.drop_rate=0.1", "+trainer.gradient_clip_val=1.5", "trainer.precision=bf16-mixed"),
        ("trainer=ddp", "logger=none", "scheduler=none", "protocol=paper", "loader.workers=2", "engine.micro_batch=16"),
        ("+logger.name=a", "+logger.tags=[x,y]", "logger.offline=false", "resume=a/b", "trainer.devices=[0,1]"),
    ],
)  # fmt: skip
def test_what_is_right_passes(overrides):
    check_config(composed("train", *overrides))


def test_every_data_set_passes():  # the other groups are run in tests/test_conf.py
    cfg = composed("train")
    for choice in choices("data"):
        cfg.data = resolved("data", choice)
        check_config(cfg)


class Own(nn.Module):
    """A loss of a user's own, which nothing else knows of."""

    min_samples_per_class = 3

    def __init__(self, *, power: Annotated[float, Interval(gt=0, le=2)] = 1.0, kind: Literal["a", "b"] = "a", even=0):
        super().__init__()
        if even % 2:
            raise ValueError(f"loss.even={even} is not possible: it must be even")


def test_a_loss_of_ones_own_has_its_schema_from_its_constructor():
    own = ("~loss.alpha", "~loss.epsilon", "~loss.detach_range", f"loss._target_={__name__}.Own")
    check_config(composed("train", *own, "+loss.power=2", "+loss.kind=b", "+loss.even=4"))
    with pytest.raises(ValueError) as caught:
        check_config(composed("train", *own, "+loss.power=2.5", "+loss.kind=c", "+loss.alpha=4"))
    assert str(caught.value).splitlines() == [
        "loss.power=2.5 is not possible: it must be a number greater than 0 and at most 2",
        "loss.kind=c is not possible: it must be one of a, b",
        "loss.alpha is no key: there is power, kind, even",
    ]
    with pytest.raises(ValueError) as caught:  # what no annotation says the constructor does
        check_config(composed("train", *own, "+loss.even=3", "sampler.samples_per_class=2"))
    assert str(caught.value).splitlines() == [
        "sampler.samples_per_class=2 leaves anchors without a positive: Own needs at least 3",
        "loss.even=3 is not possible: it must be even",
    ]


GROUPS = ("loss", "sampler", "evaluator", "backbone", "embedder", "scheduler", "transform", "data")
FILES = [CONF / group / f"{choice}.yaml" for group in GROUPS for choice in choices(group)]
TARGETS = sorted({OmegaConf.load(file).get("_target_") for file in FILES} - {None})


@pytest.mark.parametrize("target", TARGETS)
def test_no_key_of_ours_is_without_a_type(target):
    call = pydoc.locate(target)
    parameters, _ = parameters_of(call)
    assert parameters or not inspect.signature(call).parameters
    for name, parameter in parameters.items():
        assert parameter.annotation not in (Any, inspect.Parameter.empty), name
        assert not isinstance(parameter.annotation, str), name


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 5),
    st.floats(),
    st.floats(-2, 2),
    st.text(max_size=6),
    st.sampled_from(["hard", "all", "auto", "larger", "???", "${seed}", "${nosuch}", "${", "3", "recall", "nan"]),
    st.lists(st.one_of(st.integers(-1, 5), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.sampled_from(["a", "_target_"]), st.one_of(st.integers(), st.text(max_size=3)), max_size=2),
)
EVERYTHING = [
    composed("train", *overrides)
    for overrides in (
        ("logger=csv",),
        ("method=triplet", "optimizer=sgd", "data=cub200", "protocol=paper"),
        ("method=memory", "data=folder", "transform=paper", "scheduler=none"),
        ("method=cross_entropy", "model=googlenet", "data=omniglot"),
    )
]
KEYS = [(i, key) for i, cfg in enumerate(EVERYTHING) for key in sorted(
    key for group in cfg for key in ([f"{group}.{name}" for name in cfg[group]] + [group]
    if OmegaConf.is_config(cfg[group]) else [group]))]  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_passes_or_is_named(place, value):
    which, key = place
    cfg = EVERYTHING[which].copy()
    try:
        OmegaConf.update(cfg, key, value, merge=False)
    except OmegaConfBaseException:
        return  # the command line's own grammar refuses it
    before = OmegaConf.to_container(cfg)
    try:
        check_config(cfg)
    except ValueError as error:
        lines = str(error).split("\n")
        assert any(key.split(".")[0] in line for line in lines) and all(map(str.isprintable, lines))
    after = OmegaConf.to_container(cfg)
    if isinstance(before["transform"], dict):
        for filled in ("size", "resize", "interpolation"):  # null: they follow the backbone
            if before["transform"].get(filled, "") is None:
                after["transform"][filled] = None
    assert after == before


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(KEYS), st.text(st.characters(codec="ascii"), max_size=8))
def test_any_override_composes_and_passes_or_is_named(place, text):
    _, key = place
    try:
        cfg = composed("train", "logger=csv", f"{key}={text}")
    except (HydraException, ValueError):
        return  # Hydra's own messages
    try:
        check_config(cfg)
    except ValueError as error:
        assert key.split(".")[0] in str(error)


# Range and constructor are two statements of one thing; they must agree. Types are those of the signature.
CONSTRUCTED = [
    *((target, {}) for target in TARGETS if ".losses." in target and not target.endswith(".SumLoss")),
    ("dml.retrieval.expansion.QueryExpansion", {}),
    ("dml.retrieval.reranking.KReciprocal", {}),
    ("dml.retrieval.evaluator.Evaluator", {}),
    ("dml.data.transforms.Transforms", {"size": 8, "resize": 8}),
    ("dml.engine.schedule.warmup_cosine", {"optimizer": None, "steps": 3, "warmup": 0.5}),
    ("dml.data.digits.load", {}),
]
TYPED = {
    int: st.integers(-2, 300),
    float: st.one_of(st.floats(-2, 200), st.sampled_from([0.0, 1.0, 0.99, 180.0, -0.0])),
    str: st.sampled_from(["all", "hard", "ranks", "larger", "center", "x"]),
}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_range_is_what_the_constructor_takes(data):
    target, arguments = data.draw(st.sampled_from(CONSTRUCTED))
    call, arguments = pydoc.locate(target), dict(arguments)
    if "optimizer" in arguments:
        arguments["optimizer"] = torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0)
    parameters, _ = parameters_of(call)
    if "loss" in parameters:
        arguments["loss"] = pydoc.locate("dml.losses.nra.NRALoss")()
    arguments |= {key: 2 for key in ("num_classes", "embedding_dim") if key in parameters}
    if "groups" in parameters:
        arguments["groups"] = [2, 2, 2] if "ratios" in parameters else [2, 2]
    ranged = {name: p.annotation for name, p in parameters.items()
              if getattr(p.annotation, "__origin__", None) in (int, float, Literal)}  # fmt: skip
    ranged.pop("test_fraction", None)  # near its bounds it leaves no image on a side
    for key in ("num_modalities", "cutoff", "upper"):  # held against other keys too
        ranged.pop(key, None)
    name = data.draw(st.sampled_from(sorted(ranged)))
    kind = ranged[name].__origin__
    value = data.draw(TYPED[str if kind is Literal else kind])
    try:
        call(**{**arguments, name: value})
        taken = True
    except ValueError:
        taken = False
    assert taken == fits(value, ranged[name]), (target, name, value)


@pytest.mark.parametrize(
    ("hint", "takes", "refuses", "text"),
    [
        (int, [0, -3, 10**30], [True, 1.0, "1", None], "a whole number"),
        (float, [0, 1.5, -2], [math.nan, math.inf, 10**400, True, "1"], "a number"),
        (bool, [True], [0, 1, "true", None], "true or false"),
        (str, ["", "x"], [3, None, ["x"]], "text"),
        (int | None, [3, None], ["", 1.5], "a whole number or null"),
        (Literal["a", 2], ["a", 2], ["b", True, 2.0, "2"], "one of a, 2"),
        (Annotated[int, Ge(1)] | None, [1, None], [0], "a whole number of at least 1 or null"),
        (Annotated[float, Interval(gt=0, lt=1)], [0.5], [0, 1], "a number greater than 0 and less than 1"),
        (Annotated[list[Annotated[int, Ge(0)]], MinLen(1)], [[0]], [[], [-1], 0],
         "a list of 1 or more, each a whole number of at least 0"),
        (tuple[float, float], [[1, 2]], [[1], [1, "x"], 1], "a list of 2: a number, a number"),
        (tuple[int, ...], [[], [1, 2, 3]], [[1, "x"], 1], "a list, each a whole number"),
        (dict[str, Annotated[float, Gt(0)]], [{}, {"a": 1}], [{"a": 0}, []],
         "names, each with a number greater than 0"),
        (float | torch.Tensor, [1], ["x"], "a number"),
        (nn.Module, [{"_target_": "x"}], [3, {}], "a group with the _target_ of a Module"),
        (Any, [3, None, ["x"]], [], "anything"),
    ],
)  # fmt: skip
def test_types(hint, takes, refuses, text):
    assert all(fits(value, hint) for value in takes)
    assert not any(fits(value, hint) for value in refuses)
    assert describe(hint) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ("x", "x"), ("3", "'3'"), ("true", "'true'"), ("", "''"), ("a\nb", r"'a\nb'"),
     ([1, "x", None], "[1, x, null]"), (1e-4, "0.0001"), ("x" * 100, "x" * 77 + "...")],
)  # fmt: skip
def test_values_are_shown_as_a_command_line_has_them(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("method=group batch.samples_per_class=2", "sampler.samples_per_class=2 is too few: GroupLoss .* needs 3"),
        ("method=group loss.anchors_per_class=9", "sampler.samples_per_class=5 is too few: GroupLoss .* needs 10"),
        ("method=multimodal embedder.dim=5 loss.num_modalities=2", "loss.embedding_dim=5 is not possible: .* multiple"),
        ("method=angular loss.alpha=89", "loss.alpha=89 is not possible: .* at most 65"),
    ],
)
def test_settings_of_a_loss_that_do_not_go_together_are_told_before_the_data_is_read(overrides, said):
    with pytest.raises(ValueError, match=said) as caught:
        check_config(composed("train", *overrides.split()))
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_no_machine_could_hold_are_told_with_the_number_of_classes():
    cfg = composed("train", "method=multimodal", "loss.proxies_per_class=10000000")
    check_config(cfg)
    with pytest.raises(ValueError, match=r"loss\.proxies_per_class=10000000 is not .* at most .* classes"):
        check_data(cfg, *build_source(cfg, validate=True))


def test_keys_of_losses_by_name_are_held_against_their_signatures():
    third = ("+loss@loss.losses.third=proxy_anchor", "+loss.weights.third=1")
    check_config(composed("train", "loss=sum", *third))
    wrong = ("loss.losses.first.temperature=0", "+loss.losses.third.alhpa=2", "sampler.samples_per_class=1")
    with pytest.raises(ValueError) as told:
        check_config(composed("train", "loss=sum", *third, *wrong))
    said = str(told.value)
    assert "loss.losses.first.temperature=0 is not possible: it must be a number greater than 0" in said
    assert "loss.losses.third.alhpa is no key: there is alpha" in said
    with pytest.raises(ValueError, match=r"sampler\.samples_per_class=1 .* SmoothAPLoss needs at least 2"):
        check_config(composed("train", "loss=sum", *third, wrong[2]))
    with pytest.raises(ValueError, match=r"^loss\.weights\.third=null is not possible: it must be a number"):
        check_config(composed("train", "loss=sum", third[0]))
