"""optimizer.groups and layer_decay by config: what the optimiser gets, resume, sweeps, mistakes in one line."""

import pytest
import torch

from dml.app.checks import check_config
from tests.app.conftest import composed, train
from tests.app.test_resume import STEPS, assert_same_end, stopped

RULES = (
    "optimizer.groups=[{of: embedder.head, lr: 10},{of: norms_and_biases, weight_decay: 0},"
    "{of: embedder.backbone, from_step: 12}]"
)


@pytest.fixture(scope="module")
def with_rules(tmp_path_factory):
    return train(tmp_path_factory.mktemp("rules"), *STEPS, RULES)


def test_the_optimiser_has_the_groups(with_rules):
    groups = with_rules.checkpoint()["optimizer_states"][0]["param_groups"]
    found = {(round(group["lr"] / 0.003, 6), group["weight_decay"], group["from_step"]) for group in groups}
    assert found == {(1, 0.01, 12), (1, 0, 12), (10, 0.01, 0), (10, 0, 0)}


def test_weights_wait_for_their_first_step(with_rules):
    state = with_rules.checkpoint()["optimizer_states"][0]
    for group in state["param_groups"]:
        assert {int(state["state"][i]["step"]) for i in group["params"]} == {30 - group["from_step"]}


@pytest.mark.parametrize("step", [9, 15])
def test_a_resumed_run_ends_the_same(with_rules, tmp_path, step):
    folder = stopped(tmp_path / "first", step, RULES)
    assert_same_end(train(tmp_path / "second", *STEPS, RULES, f"resume={folder}"), with_rules)


def test_a_rule_can_be_swept():
    cfg = composed("train", "optimizer.groups=[{of: embedder.head, lr: 1}]", "optimizer.groups.0.lr=10")
    assert cfg.optimizer.groups[0].lr == 10


def test_layer_decay_scales_layers(tmp_path):
    run = train(
        tmp_path, "backbone.name=test_vit", "transform.size=160", "transform.resize=160", "optimizer.layer_decay=0.5"
    )
    rates = {round(group["initial_lr"] / 0.003, 6) for group in run.checkpoint()["optimizer_states"][0]["param_groups"]}
    assert {1, 0.5, 0.25} <= rates and max(rates) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.groups=[{lr: 2}]", r"optimizer\.groups\.0\.of is missing"),
        ("optimizer.groups=[{of: loss, lr: -1}]", r"optimizer\.groups\.0\.lr=-1 is not possible"),
        ("optimizer.groups=[{of: loss, rate: 1}]", r"optimizer\.groups\.0\.rate is no key: there is"),
        ("optimizer.groups=[loss]", r"optimizer\.groups\.0=loss is not possible"),
        ("optimizer.groups=[{of: embedder.haed, lr: 2}]", r"optimizer\.groups\.0\.of=embedder\.haed fits no weight"),
        ("optimizer.groups=[{of: loss, lr: 2}]", r"optimizer\.groups\.0\.of=loss fits no weight"),  # NRA has none
        ("optimizer.layer_decay=1.5", r"optimizer\.layer_decay=1\.5 is not possible"),
    ],
)
def test_a_mistake_is_one_line(override, said):
    with pytest.raises(ValueError, match=said) as caught:
        check_config(composed("train", override))
    assert len(str(caught.value).splitlines()) == 1


def test_a_schedule_that_would_undo_rules_is_refused(tmp_path):
    one_cycle = ["scheduler=none", "+scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"]
    one_cycle += ["+scheduler.max_lr=0.01", "+scheduler.total_steps=3"]
    with pytest.raises(ValueError, match="OneCycleLR gives all weights one learning rate"):
        train(tmp_path, "optimizer.groups=[{of: embedder.head, lr: 2}]", *one_cycle)


def test_without_rules_nothing_changes(tmp_path):
    plain = train(tmp_path / "plain", "trainer.max_steps=2")
    groups = plain.checkpoint()["optimizer_states"][0]["param_groups"]
    assert len(groups) == 1 and "from_step" not in groups[0]
    same = train(tmp_path / "same", "trainer.max_steps=2", "optimizer.groups=[{of: embedder, lr: 1}]")
    for name, value in plain.checkpoint()["state_dict"].items():
        assert torch.equal(value, same.checkpoint()["state_dict"][name])
