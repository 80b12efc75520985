"""Losses of groups of columns in a run: what is filled in, what is refused, and what a checkpoint gives back."""

import pytest
import torch

from dml.app.checks import check_config
from dml.app.sizes import fill_in_sizes, leaves_open
from tests.app.conftest import composed, evaluate, train

GROUPS = ("embedder=groups", "embedder.dim=6", "embedder.sizes=[2,4]")


def said(*overrides):
    with pytest.raises(ValueError) as caught:
        check_config(composed("train", *overrides))
    return str(caught.value)


def test_a_loss_that_knows_no_groups_is_refused_with_the_command_that_works():
    message = said(*GROUPS, "loss=nra")
    command = "loss=per_group loss@loss.loss=nra"
    assert message == f"embedder=groups has 2 groups of columns, which NRALoss does not tell apart: {command}"
    check_config(composed("train", *GROUPS, *command.split()))
    assert said(*GROUPS, "loss=memory").endswith(
        "CrossBatchMemory does not tell apart: loss=per_group loss@loss.loss=memory"
    )
    check_config(composed("train", *GROUPS, "loss=memory", "loss@loss.loss=per_group"))


def test_columns_for_training_alone_need_a_loss_that_they_are_for():
    assert said("embedder=with_features", "loss=nra").startswith("embedder=with_features gives columns for training")


def test_losses_around_and_inside_have_the_sizes_that_they_see():
    loss = {"_target_": "a", "embedding_dim": None, "loss": {"_target_": "b", "groups": None}}
    loss["loss"]["loss"] = {"_target_": "c", "embedding_dim": None, "num_classes": None, "groups": None}
    assert leaves_open(loss, "num_classes")
    fill_in_sizes(loss, (3, 3), 7)
    assert loss["embedding_dim"] == 6 and loss["loss"]["groups"] == [3, 3]
    assert loss["loss"]["loss"] == {"_target_": "c", "embedding_dim": 3, "num_classes": 7, "groups": [3]}
    assert not leaves_open(loss, "num_classes")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("loss=per_group", "loss@loss.loss=proxy_nca"), r"loss.loss.embedding_dim cannot be 2 and 4, the widths of"),
        (("loss=hdc",), "loss.ratios=[1.0, 0.5, 0.2] is not possible: it must be a share in (0, 1] for each of the 2"),
        (("loss=bier", "loss.adversarial=1"), "loss.adversarial=1 is not possible: it must be 0, or embedder.detached"),
        (
            ("loss=bier", "embedder.detached=true"),
            "embedder=groups gives columns for training alone, of which BIERLoss makes no use: take the",
        ),
        (("loss=bier", "embedder.sizes=[2,3]"), "embedder.sizes=[2, 3] add up to 5, which is not embedder.dim=6"),
        (("loss=bier", "loss.groups=[2,0]"), "loss.groups=[2, 0] is not possible"),
        (("loss=bier", "loss.alpha=-1"), "loss.alpha=-1 is not possible: it must be a number greater"),
        (("loss=per_group", "loss@loss.loss=nra", "sampler.samples_per_class=1"), "NRALoss needs at least 2"),
        (("loss=bier", "optimizer.groups=[{of: loss, lr: 2}]"), "optimizer.groups.0.of=loss fits no weight"),
    ],
)
def test_what_does_not_go_together_is_told_before_the_data(overrides, expected):
    assert expected in said(*GROUPS, *overrides)


def test_a_run_evaluates_as_its_checkpoint_does(tmp_path):
    own = ("embedder=groups", "embedder.dim=6", "embedder.sizes=[3,3]", "loss=per_group", "loss@loss.loss=proxy_nca")
    run = train(tmp_path / "run", *own, "trainer.val_check_interval=3")
    config = run.checkpoint()["dml_config"]["loss"]
    assert config["groups"] == [3, 3] and config["loss"]["embedding_dim"] == 3 and config["loss"]["num_classes"] == 10
    weights = run.checkpoint()["state_dict"]
    assert weights["loss.losses.1.proxies"].shape == (10, 3)
    again = evaluate(tmp_path / "again", run.folder / "checkpoints" / "best.ckpt")
    tested = {name: value for name, value in run.metrics.items() if name.startswith("test/")}
    assert {name: again.metrics[name] for name in tested} == tested
    assert torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 3
    resumed = train(tmp_path / "more", *own, f"resume={run.folder}", "trainer.val_check_interval=3")
    assert resumed.metrics == run.metrics
