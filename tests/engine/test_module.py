"""The training step and the evaluation over a whole loader."""

import numpy as np
import pytest
import torch

from dml.engine.callbacks import make_callbacks
from dml.engine.finite import NonFiniteLossError
from dml.engine.stop import StopSignals
from tests.engine.conftest import (
    AtStep,
    OwnWeights,
    Scores,
    TinyEmbedder,
    make_data,
    make_learner,
    make_trainer,
    records,
)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path, value):
    learner, kept = make_learner(loss=OwnWeights({3: value})), []
    trainer = make_trainer(tmp_path, 9, AtStep(lambda _, module: kept.append(weights(module))))
    with pytest.raises(NonFiniteLossError, match=r"at step 3\b.*optimizer\.lr"):
        trainer.fit(learner, make_data())
    assert len(kept) == trainer.global_step == 3
    before, after = kept[-1], weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(kept[0]["embedder.head.weight"], after["embedder.head.weight"])  # it did learn


def test_crops_of_an_image_are_averaged():
    learner = make_learner()
    images = torch.randint(0, 256, (3, 10, 3, 8, 8), dtype=torch.uint8)
    expected = torch.stack([learner.embedder(image).mean(dim=0) for image in images])
    torch.testing.assert_close(learner(images), expected)
    torch.testing.assert_close(learner(images[:, 0]), learner.embedder(images[:, 0]), rtol=0, atol=0)


def test_all_weights_that_learn_are_trained_those_of_the_loss_too(tmp_path):
    learner = make_learner()
    before = weights(learner)
    make_trainer(tmp_path, 2).fit(learner, make_data())
    changed = {name for name, value in weights(learner).items() if not torch.equal(before[name], value)}
    assert changed == {"embedder.head.weight", "embedder.head.bias", "loss.weight"}
    optimized = learner.configure_optimizers().param_groups[0]["params"]
    assert all(parameter is not learner.embedder.frozen for parameter in optimized)


def test_the_scheduler_steps_with_every_batch(tmp_path):
    rates = []
    learner = make_learner(scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    trainer = make_trainer(tmp_path, 7, AtStep(lambda t, _: rates.append(t.optimizers[0].param_groups[0]["lr"])))
    trainer.fit(learner, make_data())
    assert rates == pytest.approx([0.01 * 0.5**step for step in range(1, 8)])


def test_checkpoints_carry_the_config(tmp_path):
    learner = make_learner(config={"seed": 5, "evaluator": {"ks": [1, 2]}, "scheduler": {}})
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(learner, make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert stored["dml_config"] == learner.config
    assert set(stored["state_dict"]) == set(learner.state_dict())


@pytest.mark.parametrize("watch_test", [False, True])
def test_metrics_say_which_images_they_are_of(tmp_path, watch_test):
    learner = make_learner(evaluator=Scores(0.25, 0.75), watch_test=watch_test)
    trainer = make_trainer(tmp_path, 2, log_every_n_steps=1)
    trainer.fit(learner, make_data())
    stage = "watched_test" if watch_test else "val"
    names = {name for name in trainer.logged_metrics if not name.startswith("train/")}
    assert names == {f"{stage}/recall@1"} and "train/loss" in trainer.logged_metrics
    assert trainer.callback_metrics[f"{stage}/recall@1"] == 0.25
    trainer.test(learner, make_data(), verbose=False)
    assert learner.test_metrics == {"test/recall@1": 0.75}
    assert set(trainer.logged_metrics) == {"test/recall@1"}


def test_the_evaluator_sees_every_image_once_in_order(tmp_path):
    learner = make_learner()
    own = np.array([3, -1, -1, -1, -1, -1, -1, -1, 0])
    trainer, data = make_trainer(tmp_path, 2), make_data(gallery=True, own_index=own)
    trainer.fit(learner, data)
    trainer.test(learner, data, verbose=False)
    learner.eval()

    def embedded(part):
        with torch.no_grad():
            return learner.embedder(torch.from_numpy(part.images).permute(0, 3, 1, 2))

    (validation, labels, no_gallery), (queries, query_labels, gallery) = learner.evaluator.calls
    assert labels.tolist() == records(11, 1).labels.tolist() and len(validation) == 11
    assert no_gallery["gallery"] is None and no_gallery["gallery_labels"] is None
    assert no_gallery["own_index"] is None and gallery["own_index"] is own
    assert gallery["share"] == (0, 1)
    torch.testing.assert_close(validation, embedded(records(11, 1)))
    torch.testing.assert_close(queries, embedded(records(9, 2)))
    torch.testing.assert_close(gallery["gallery"], embedded(records(6, 3)))
    assert query_labels.tolist() == records(9, 2).labels.tolist()
    assert gallery["gallery_labels"].tolist() == records(6, 3).labels.tolist()
    assert torch.equal(learner.test_embeddings[0], queries) and torch.equal(learner.test_embeddings[1], query_labels)


def test_evaluation_is_in_evaluation_mode_and_leaves_training_mode_behind(tmp_path):
    modes = []

    class Watching(Scores):
        def __call__(self, *args, **kwargs):
            modes.append(learner.embedder.training)
            return super().__call__(*args, **kwargs)

    learner = make_learner(evaluator=Watching())
    make_trainer(tmp_path, 4, AtStep(lambda _, module: modes.append(module.embedder.training))).fit(
        learner, make_data()
    )
    assert modes == [True, True, False, True, True, False]


def test_nothing_is_validated_without_validation_images(tmp_path):
    learner = make_learner()
    trainer = make_trainer(tmp_path, 4)
    trainer.fit(learner, make_data(validate=False))
    assert trainer.global_step == 4 and learner.evaluator.calls == []


def test_a_plateau_lowers_the_rate_by_validations_and_goes_on_exactly(tmp_path):
    def learner(*scores):
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        return make_learner(
            evaluator=Scores(*scores),
            scheduler=lambda optimizer: plateau(optimizer, mode="max", factor=0.5, patience=1),
            monitor="val/recall@1",
        )

    def fit(folder, steps, *scores, ckpt_path=None):
        files = make_callbacks(
            folder=str(folder), monitor="val/recall@1", patience=None, minutes=60, stop=StopSignals()
        )
        trainer = make_trainer(folder, steps, *files, val_check_interval=1)
        trainer.fit(learner(*scores), make_data(), ckpt_path=ckpt_path, weights_only=True)
        return trainer.optimizers[0].param_groups[0]["lr"]

    assert fit(tmp_path / "a", 3, 0.5, 0.4, 0.6) == 0.01
    assert fit(tmp_path / "b", 3, 0.5, 0.4, 0.3) == 0.005  # two validations that are no better: more than patience
    assert fit(tmp_path / "a", 4, 0.5, ckpt_path=str(tmp_path / "a" / "last.ckpt")) == 0.01
    assert fit(tmp_path / "a", 5, 0.5, ckpt_path=str(tmp_path / "a" / "last.ckpt")) == 0.005


def test_columns_are_trained_and_what_they_join_to_is_searched_with(tmp_path):
    class Columns(TinyEmbedder):
        def join(self, columns):
            return columns[:, :1]

        def penalty(self):
            return 3 * self.head.bias.square().sum()

    scores, plain = Scores(), make_learner()
    learner = make_learner(embedder=Columns(), evaluator=scores)
    learner.embedder.load_state_dict(plain.embedder.state_dict())
    images = torch.randint(0, 256, (2, 4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(learner(images[0]), learner.embedder(images[0])[:, :1])
    crops = torch.stack([learner(images[:, i]) for i in range(4)]).mean(dim=0)
    torch.testing.assert_close(learner(images), crops)
    for each in (learner, plain):
        make_trainer(tmp_path, 1, val_check_interval=1).fit(each, make_data())
    assert scores.calls[0][0].shape == (11, 1)
    before = make_learner().embedder
    moved, expected = (before.head.bias - each.embedder.head.bias for each in (learner, plain))
    torch.testing.assert_close(moved, expected + 0.01 * 6 * before.head.bias)  # the gradient of the penalty
