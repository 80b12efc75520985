"""Stop and resume equal a run without a stop; a resume of something else is refused."""

import json
import shutil
import signal

import pytest
import torch

from dml.app.folder import resume_point
from dml.engine.module import MetricLearner
from dml.models.backbones import create_backbone
from tests.app.conftest import TRAIN, Run, composed, train, write_images

# An epoch of the digits is 22 batches: the 30 steps are one epoch and a part of the second.
STEPS = ("trainer.max_steps=30", "trainer.val_check_interval=7", "scheduler=none")
TREE = ("data=folder", "evaluator.ks=[1]", "batch.classes_per_batch=2", "batch.samples_per_class=2", "loader.workers=0")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), *STEPS)


def stopped(folder, step, *overrides):
    """A run that gets Ctrl-C in its step number `step`, and ends after it."""
    original = MetricLearner.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step - 1:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricLearner, "training_step", training_step)
        with pytest.raises(SystemExit):
            train(folder, *STEPS, *overrides)
    return folder


def assert_same_end(run: Run, expected: Run) -> None:
    """All that decides what would come next is equal to the last bit."""
    state, wanted = run.checkpoint(), expected.checkpoint()
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "RetrievalData"):
        assert_equal(state[part], wanted[part], part)


def assert_equal(found, wanted, where: str) -> None:
    assert type(found) is type(wanted), where
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key, value in wanted.items():
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), where
        for i, value in enumerate(wanted):
            assert_equal(found[i], value, f"{where}.{i}")
    else:
        assert found == wanted, where


@pytest.mark.parametrize(("step", "workers"), [(15, 2), (22, 0), (25, 0)])
def test_weights_after_ctrl_c_and_resume_are_those_of_one_run(tmp_path, uninterrupted, step, workers):
    folder = stopped(tmp_path / "first", step, f"loader.workers={workers}")
    assert_same_end(train(tmp_path / "second", *STEPS, f"resume={folder}"), uninterrupted)


def test_metrics_after_ctrl_c_and_resume_are_those_of_one_run(tmp_path, uninterrupted):
    folder = stopped(tmp_path / "first", 15)
    assert train(tmp_path / "second", *STEPS, f"resume={folder}").metrics == uninterrupted.metrics


def test_a_finished_run_goes_on_with_more_steps(tmp_path, uninterrupted):
    train(tmp_path / "first", *STEPS, "trainer.max_steps=15")
    resumed = train(tmp_path / "second", *STEPS, f"resume={tmp_path / 'first'}")
    assert_same_end(resumed, uninterrupted)


# Losses together whose checkpoints carry more than the embedder's: weights of their own, draws, earlier batches.
STATEFUL = (
    *("loss=sum", "loss@loss.losses.first=margin", "loss@loss.losses.second=proxy_anchor"),
    *("+loss@loss.losses.third=memory", "loss.losses.third.size=120", "loss.losses.third.start_step=1"),
    *("+loss@loss.losses.fourth=recall_at_k", "loss.losses.fourth.mixup=true"),
    *("+loss@loss.losses.fifth=hist", "loss.losses.fifth.hidden=4"),
    *("+loss.weights.third=0.5", "+loss.weights.fourth=1", "+loss.weights.fifth=0.1"),
    "+optimizer.groups=[{of: loss.losses.first.beta, lr: 50, weight_decay: 0}, {of: loss.losses.second, lr: 100}]",
)


def test_losses_with_a_state_of_their_own_go_on(tmp_path):
    common = (*STATEFUL, "trainer.val_check_interval=2", "scheduler=none")
    whole = train(tmp_path / "whole", *common, "trainer.max_steps=4")
    train(tmp_path / "first", *common, "trainer.max_steps=2")
    resumed = train(tmp_path / "second", *common, "trainer.max_steps=4", f"resume={tmp_path / 'first'}")
    assert_same_end(resumed, whole)
    state = whole.checkpoint()["state_dict"]
    assert state["loss.losses.first.beta"].shape == (10,) and (state["loss.losses.first.beta"] != 1.2).all()
    steps = [state[f"loss.losses.{name}._extra_state"]["step"] for name in ("first", "third", "fourth")]
    assert steps == [4, 4, 4] and state["loss.losses.third._extra_state"]["stored"] == 150


def test_how_a_step_is_carried_out_may_change(tmp_path, uninterrupted):
    folder = stopped(tmp_path / "first", 15)
    run = train(tmp_path / "second", *STEPS, f"resume={folder}", "engine.micro_batch=16")
    assert json.loads((run.folder / "metrics.json").read_text())["row"]["engine"] == {"micro_batch": 16}
    weights, expected = run.checkpoint()["state_dict"], uninterrupted.checkpoint()["state_dict"]
    # Distances know no bias: its gradient is rounding, which Adam scales up.
    del weights["embedder.head.bias"], expected["embedder.head.bias"]
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-3)
    assert not torch.equal(weights["embedder.head.weight"], expected["embedder.head.weight"])  # it was another way


def test_the_best_of_before_the_stop_stays_the_best(tmp_path, monkeypatch):
    from dml.retrieval.evaluator import Evaluator

    evaluate = Evaluator.__call__
    scores = [0.0, 0.9, 0.2, 0.3, 0.1]  # the first before the first step

    def scripted(self, *args, **kwargs):
        found = evaluate(self, *args, **kwargs)
        return {**found, "map": scores.pop(0)} if scores else found

    monkeypatch.setattr(Evaluator, "__call__", scripted)
    folder = stopped(tmp_path / "first", 15)
    assert scores == [0.3, 0.1]
    run = train(tmp_path / "second", *STEPS, f"resume={folder}")
    assert run.metrics["val/map"] == pytest.approx(0.9)
    assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 7
    assert run.checkpoint("best")["global_step"] == 7


def test_best_and_last_can_be_resumed_by_name(tmp_path, finished):
    best = finished.checkpoint("best")["global_step"]
    path = finished.folder / "checkpoints" / "best.ckpt"
    settings = ("seed=0", "trainer.max_steps=12", "trainer.val_check_interval=5", f"resume={path}")
    run = train(tmp_path, *settings)
    assert best < 12
    assert_same_end(run, finished)
    # With nothing left to train the folder has its state all the same.
    again = train(tmp_path / "again", *settings[:-1], f"resume={tmp_path}")
    assert_same_end(again, finished)
    assert again.metrics == finished.metrics


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("loss=contrastive", "loss"),
        ("optimizer.lr=0.1", "optimizer"),
        ("seed=4", "seed"),
        ("data.val_fraction=0.3", "data"),
        ("batch.samples_per_class=4", "sampler"),
        ("trainer.max_steps=13", "scheduler"),  # its length
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, finished, override, named):
    resume = f"resume={finished.folder}"
    settings = ("seed=0", "trainer.max_steps=12", "trainer.val_check_interval=5", resume)
    with pytest.raises(ValueError, match=rf"resume=.* other settings of .*\b{named}\b"):
        train(tmp_path, *settings, override)


def test_keys_that_the_code_did_not_have_then_are_at_their_defaults(tmp_path, finished):
    stored = finished.checkpoint()
    del stored["dml_config"]["transform"]["augment"], stored["dml_config"]["optimizer"]["groups"]
    torch.save(stored, old := tmp_path / "old.ckpt")
    settings = ("seed=0", "trainer.max_steps=12", "trainer.val_check_interval=5", f"resume={old}")
    assert resume_point(composed("train", *TRAIN, *settings), tmp_path / "new", "code") == (old, [])
    with pytest.raises(ValueError, match=r"other settings of optimizer\.groups \(then \[\], now \[\{"):
        more = "optimizer.groups=[{of: head, lr: 0.1}]"
        resume_point(composed("train", *TRAIN, *settings, more), tmp_path / "new", "code")


def test_a_resume_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"resume=.*nowhere does not exist"):
        train(tmp_path / "run", f"resume={tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"resume=.*last\.ckpt does not exist"):
        train(tmp_path / "run", f"resume={tmp_path / 'empty'}")


def test_a_file_that_is_older_than_the_best_of_its_run_is_refused(tmp_path, finished):
    folder = tmp_path / "checkpoints"
    shutil.copytree(finished.folder / "checkpoints", folder)
    shutil.copy(folder / "last.ckpt", folder / "best.ckpt")  # of step 12
    shutil.copy(finished.folder / "checkpoints" / "best.ckpt", folder / "last.ckpt")
    with pytest.raises(ValueError, match=rf"last\.ckpt is older than .*best\.ckpt.*: give resume={tmp_path}"):
        train(tmp_path / "run", f"resume={folder / 'last.ckpt'}")


def test_the_same_wandb_run_goes_on(tmp_path):
    folder = stopped(tmp_path / "first", 15, "logger=wandb")
    train(tmp_path / "second", *STEPS, "logger=wandb", f"resume={folder}")
    names = [path.name for path in sorted(tmp_path.glob("*/wandb/offline-run-*"))]
    assert len(names) == 2 and len({name.rpartition("-")[2] for name in names}) == 1


def moved(tmp_path, step=None):
    """A run on a tree of images with weights from a file: it is broken off after `step`, or finished; then tree and
    file go elsewhere."""
    weights = tmp_path / "w.pth"
    torch.save(create_backbone(name="convnet").state_dict(), weights)
    root = write_images(tmp_path / "here", classes=8, images=4)
    place = (*TREE, f"backbone.checkpoint_path={weights}", f"data.root={root}")
    if step is None:
        train(tmp_path / "run", *place)
    else:
        stopped(tmp_path / "run", step, *place)
    weights.unlink()
    (tmp_path / "there").mkdir()
    root.rename(tmp_path / "there" / "images")
    return (*TREE, f"backbone.checkpoint_path={weights}", f"data.root={tmp_path / 'there' / 'images'}")


def test_images_may_move_and_weights_go_once_a_run_has_begun(tmp_path):
    place = moved(tmp_path, 2)
    run = train(tmp_path / "other", *STEPS, *place, f"resume={tmp_path / 'run'}")
    assert train(tmp_path / "run", *STEPS, *place).metrics == run.metrics  # the same folder goes on
    (tmp_path / "there" / "images" / "class0" / "0.png").rename(tmp_path / "there" / "images" / "class0" / "9.png")
    with pytest.raises(ValueError, match=r"data.*the training and validation images are not those"):
        train(tmp_path / "third", *STEPS, *place, f"resume={tmp_path / 'run'}")


def test_a_finished_run_is_known_by_its_images_wherever_they_are(tmp_path):
    place = moved(tmp_path)
    finished = (tmp_path / "run" / "metrics.json").read_bytes()
    train(tmp_path / "run", *place)
    assert (tmp_path / "run" / "metrics.json").read_bytes() == finished
    (tmp_path / "there" / "images" / "class7" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"data \(data\.root \(then .*here, now .*the test images are not those"):
        train(tmp_path / "run", *place)
