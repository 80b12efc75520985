"""Parts that see embeddings of the whole training set before each epoch, and a run that goes on exactly."""

import pytest
import torch

from dml.losses.htl import HTLLoss
from dml.samplers.neighbours import NeighbourSampler
from tests.engine.conftest import AtStep, make_data, make_learner, make_trainer, records


def neighbours(**given):
    return NeighbourSampler(**given, neighbours=1)


def parts(workers=0):
    learner = make_learner(loss=HTLLoss(num_classes=4, beta=0.5, depth=3))
    return learner, make_data(sampler=neighbours, workers=workers, validate=False), looks(learner)


def looks(learner):
    """What the loss has seen, by look."""
    seen, see = [], learner.loss.see_training_set

    def keep(embeddings, labels):
        seen.append((embeddings.clone(), labels.clone()))
        see(embeddings, labels)

    learner.loss.see_training_set = keep
    return seen


def run(folder, steps, workers=0, resume=None):
    def save(trainer, _):
        if trainer.global_step == steps:
            trainer.save_checkpoint(folder / "last.ckpt")

    learner, data, seen = parts(workers)
    given = {"val_check_interval": None, "limit_val_batches": 0, "enable_checkpointing": False}
    make_trainer(folder, steps, AtStep(save), **given).fit(learner, data, ckpt_path=resume)
    return learner, seen


def test_it_is_seen_before_each_epoch_as_the_network_then_is(tmp_path):
    kept = []
    learner, data, seen = parts()
    first = make_learner().embedder
    keep = AtStep(lambda _, module: kept.append({k: v.clone() for k, v in module.embedder.state_dict().items()}))
    make_trainer(tmp_path, 12, keep, val_check_interval=None, limit_val_batches=0).fit(learner, data)
    assert len(seen) == 3  # of 5 steps an epoch
    images = torch.from_numpy(records(40).images).movedim(3, 1)
    for (embeddings, labels), state in zip(seen, (first.state_dict(), kept[4], kept[9]), strict=True):
        first.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(embeddings, first(images))
        assert labels.tolist() == records(40).labels.tolist()
    assert data._sampler._near is not None and learner.embedder.training


@pytest.mark.parametrize(("steps", "workers", "looks"), [(3, 0, 2), (5, 0, 2), (7, 0, 1), (10, 0, 1), (7, 2, 1)])
def test_a_run_goes_on_exactly_within_an_epoch_and_at_its_end(tmp_path, steps, workers, looks):
    whole, seen = run(tmp_path, 12)
    (tmp_path / "part").mkdir()
    run(tmp_path / "part", steps, workers)
    (tmp_path / "rest").mkdir()
    rest, later = run(tmp_path / "rest", 12, workers, resume=tmp_path / "part" / "last.ckpt")
    assert len(later) == looks
    for again, before in zip(later, seen[-looks:], strict=True):
        assert torch.equal(again[0], before[0])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_parts_that_see_nothing_cost_nothing(tmp_path, monkeypatch):
    learner = make_learner()
    monkeypatch.setattr(learner, "embed_all", None)
    make_trainer(tmp_path, 6).fit(learner, make_data())
