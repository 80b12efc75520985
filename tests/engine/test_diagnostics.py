"""What is logged of a step beside its loss: right, only at the steps that are logged, and no trace in training."""

import math

import pytest
import pytorch_lightning as pl
import torch

from dml.engine import diagnostics
from dml.engine.diagnostics import Diagnostics
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.nra import NRALoss
from dml.losses.triplet import TripletLoss
from tests import oracles
from tests.engine.conftest import AtStep, OwnWeights, make_data, make_learner, make_trainer

NAMES = {"embedding_norm", "positive_distance", "negative_distance", "active_anchors", "gradient_norm"}


def look(loss, embeddings, labels):
    """What is found of one step whose only weights are the embeddings."""
    watcher, x = Diagnostics(), torch.nn.Parameter(embeddings)
    watcher.see(loss, x, labels, 0)
    assert watcher.after_backward([x]) == {}  # there was none yet
    loss(x, labels).backward()
    found = watcher.after_backward([x])
    assert watcher.after_backward([x]) == {}
    return {name: float(value) for name, value in found.items()}, x.grad


@pytest.mark.parametrize("block", [2**22, 20])
def test_means_by_a_slow_loop(monkeypatch, block):
    monkeypatch.setattr(diagnostics, "_BLOCK", block)
    x, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) + 40, torch.arange(9) % 4
    distances = oracles.distances(x)
    pairs = [(labels[i] == labels[j], distances[i][j]) for i in range(9) for j in range(9) if i != j]
    found, gradient = look(NRALoss(), x, labels)
    for name, same in (("positive_distance", True), ("negative_distance", False)):
        chosen = [d for kind, d in pairs if kind == same]
        assert found[name] == pytest.approx(math.fsum(chosen) / len(chosen), rel=1e-4)
    assert found["embedding_norm"] == pytest.approx(sum(math.hypot(*row) for row in x.tolist()) / 9, rel=1e-6)
    assert found["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-6)


def test_an_embedding_is_no_positive_of_itself():
    # Of more than 25 rows PyTorch takes distances from a product, in which none is at distance 0 of itself.
    generator = torch.Generator().manual_seed(0)
    centres = 30 * torch.randn(20, 4, generator=generator)
    apart = torch.nn.functional.normalize(torch.randn(20, 4, generator=generator))
    found, _ = look(NRALoss(), torch.cat([centres, centres + apart]), torch.arange(40) % 20)
    assert found["positive_distance"] == pytest.approx(1, rel=1e-3)


def test_active_are_those_that_the_loss_moves():
    # Far beyond the margin, and each pair of a class at one place, but for the last pair.
    x = torch.tensor([[0.0], [0.0], [50.0], [50.0], [90.0], [90.1]])
    x, labels = torch.cat([x, torch.zeros(6, 1)], dim=1), torch.arange(6) // 2
    assert look(ContrastiveLoss(), x, labels)[0]["active_anchors"] == pytest.approx(2 / 6)
    assert look(TripletLoss(mining="hard"), x, labels)[0]["active_anchors"] == 0
    assert look(ContrastiveLoss(margin=100.0), x, labels)[0]["active_anchors"] == 1


def test_a_kind_of_pair_that_is_not_there_has_no_distance():
    x = torch.eye(4)
    assert "positive_distance" not in look(NRALoss(), x, torch.arange(4))[0]
    assert "negative_distance" not in look(NRALoss(), x, torch.zeros(4, dtype=torch.int64))[0]


@pytest.mark.parametrize(
    ("places", "alpha", "expected"),
    [
        # Anchors 0 and 1 (the last sample is none): ranks 0 and 1, in the right order and in the wrong one.
        ((0, 1, 3), 4.0, 1.0),
        ((0, 3, 1), 4.0, 1.0),
        ((0, 1, 3), 1.0, 0.0),
        ((0, 1, 3), 0.5, 1.0),  # at the ends, where the formula's slope is infinite, ours is 0
        # Ranks 1/4 and 3/4, 0 and 2/3, 1/2 and 1/2: only the 0 has no slope.
        ((0, 1, 2, 4, 5), 4.0, 1 / 6),
        ((0, 1, 2, 4, 5), 10.0, 1 / 6),  # at 1/4 it is 10 / 2^9, about 0.02
        ((0, 1, 2, 4, 5), 60.0, 4 / 6),
        ((7, 7, 7), 4.0, 1.0),  # 0/0
    ],
)
def test_saturated_ranks_by_hand(places, alpha, expected):
    labels = torch.tensor([0, 0, 1] if len(places) == 3 else [0, 0, 0, 1, 2])
    x = torch.tensor(places, dtype=torch.float64)[:, None]
    assert NRALoss(alpha=alpha).diagnose(x, labels)["saturated_ranks"].item() == pytest.approx(expected)
    assert NRALoss().diagnose(x, torch.zeros(len(x), dtype=torch.int64)) == {}


class Logged(pl.Callback):
    """Remembers what is logged after every step, and the gradients' norm before Lightning's own clipping."""

    def __init__(self):
        self.steps, self.norms = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.stack(norms).norm().item())

    def on_train_batch_end(self, trainer, *_):
        self.steps.append({name: float(value) for name, value in trainer.logged_metrics.items() if "train" in name})


def fit(folder, every, loss=None, **given):
    seen, state = Logged(), []
    torch.manual_seed(0)
    learner = make_learner(loss=OwnWeights() if loss is None else loss, **given)
    trainer = make_trainer(
        folder,
        7,
        seen,
        AtStep(lambda *_: state.append(torch.get_rng_state())),
        log_every_n_steps=every,
        gradient_clip_val=0.05,
        val_check_interval=100,
    )
    trainer.fit(learner, make_data(validate=False))
    return learner.state_dict(), state, seen


@pytest.mark.parametrize(("loss", "micro_batch"), [(OwnWeights, None), (OwnWeights, 3), (NRALoss, None)])
def test_only_logged_steps_are_looked_at_and_training_does_not_notice(tmp_path, monkeypatch, loss, micro_batch):
    plain, plain_state, _ = fit(tmp_path, 0, loss(), micro_batch=micro_batch)
    calls, see = [], Diagnostics.see
    monkeypatch.setattr(Diagnostics, "see", lambda self, *given: calls.append(given[-1]) or see(self, *given))
    weights, state, seen = fit(tmp_path, 3, loss(), micro_batch=micro_batch)
    assert calls == [2, 5]
    assert all(torch.equal(plain[name], weights[name]) for name in plain)
    assert all(map(torch.equal, plain_state, state))
    names = NAMES | {"loss"} | ({"saturated_ranks"} if loss is NRALoss else set())
    assert set(seen.steps[2]) == set(seen.steps[5]) == {f"train/{name}" for name in names}
    for step in (2, 5):
        assert seen.steps[step]["train/gradient_norm"] == pytest.approx(seen.norms[step], rel=1e-6)
        assert seen.steps[step]["train/gradient_norm"] > 0.05  # before clipping
        assert seen.steps[step]["train/active_anchors"] == 1 or loss is NRALoss


def test_a_collapse_is_told_once(tmp_path, caplog):
    def collapse(_, module):
        with torch.no_grad():
            module.embedder.head.weight.zero_()

    learner = make_learner(loss=NRALoss())
    trainer = make_trainer(tmp_path, 6, AtStep(collapse), log_every_n_steps=1)
    trainer.fit(learner, make_data(validate=False))
    (record,) = [record for record in caplog.records if record.name == diagnostics.__name__]
    assert record.message.startswith("step 1: the embeddings have collapsed")
    assert "docs/troubleshooting.md" in record.message


def test_near_embeddings_are_no_collapse(caplog):
    x = 1 + 1e-3 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    look(NRALoss(), x, torch.arange(16) // 4)
    look(NRALoss(), 1e-6 * (x - 1), torch.arange(16) // 4)  # small is no collapse either
    assert not caplog.records
    look(NRALoss(), 1 + (x - 1) * 1e-3, torch.arange(16) // 4)
    assert "collapsed" in caplog.text
