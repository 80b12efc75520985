"""All that computes on a GPU, on a device that refuses what CUDA refuses (dml/testing/pretended.py)."""

import copy

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import SingleDeviceStrategy

from dml.engine.callbacks import make_callbacks
from dml.engine.stop import StopSignals
from dml.losses.building_blocks.host import few_places
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.hdc import HDCLoss
from dml.losses.margin import MarginLoss
from dml.losses.memory import CrossBatchMemory
from dml.losses.nra import NRALoss
from dml.losses.pddm import PDDMLoss
from dml.losses.per_group import PerGroupLoss
from dml.losses.recall_at_k import RecallAtKLoss
from dml.losses.sum import SumLoss
from dml.losses.triplet import TripletLoss
from dml.retrieval.evaluator import Evaluator
from dml.testing.pretended import MixedDevicesError, pretended_device
from tests.engine.conftest import make_data, make_learner, make_trainer
from tests.losses import TIED, Batch
from tests.losses.table import EVERY, build, htl

BATCHES = {"unequal": Batch((9, 5, 3, 3, 2, 1), 8), "grid": TIED["grid"], "blocks": Batch((6,) * 100, 32)}


def value_and_gradients(loss, embeddings, labels):
    x = embeddings.detach().clone().requires_grad_()
    value = loss(x, labels)
    value.backward()
    return [value.detach(), x.grad, *(weight.grad for weight in loss.parameters())]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", EVERY)
def test_a_loss_is_the_same_as_on_the_cpu(name, batch):
    embeddings, labels = BATCHES[batch].make(0)
    embeddings = embeddings.float()
    torch.manual_seed(0)
    loss = build(name, BATCHES[batch].dim, len(BATCHES[batch].sizes))
    other = copy.deepcopy(loss)
    expected = value_and_gradients(loss, embeddings, labels)
    with pretended_device() as gpu:
        found = value_and_gradients(other.to(gpu.device), embeddings.to(gpu.device), labels.to(gpu.device))
        assert {each.device for each in found} == {gpu.device}
        found = [each.cpu() for each in found]
    for each, there in zip(found, expected, strict=True):
        torch.testing.assert_close(each, there, rtol=1e-3, atol=5e-4 * float(there.abs().max()) + 1e-7)


def _sum(classes):
    """Losses with a memory, draws and wrappers of their own in one."""
    losses = {
        "nra": NRALoss(),
        "memory": CrossBatchMemory(loss=MarginLoss(num_classes=classes), size=50, start_step=0, embedding_dim=32),
        "groups": PerGroupLoss(loss=TripletLoss(), groups=(16, 16)),
        "network": build("hist", 32, classes),
    }
    return SumLoss(losses=losses, weights=dict.fromkeys(losses, 1.0))


# Ways through losses that those of the table do not go.
WAYS = {
    "htl, active": lambda classes: htl(32, classes, average="active"),
    "hdc, cascaded": lambda classes: HDCLoss(groups=(16, 16), ratios=(0.6, 0.3), cascaded=True),
    "pddm, dropout": lambda classes: PDDMLoss(embedding_dim=32, dropout=0.3),
    "recall_at_k, mixup": lambda classes: RecallAtKLoss(mixup=True),
    "sum of four": _sum,
}


@pytest.mark.parametrize("size", [96, 600])
@pytest.mark.parametrize("name", [*EVERY, *WAYS])
def test_the_host_waits_twice_for_a_loss(name, size):
    batch = Batch((6,) * (size // 6), 32)
    embeddings, labels = batch.make(0)
    loss = WAYS[name](size // 6) if name in WAYS else build(name, batch.dim, len(batch.sizes))
    with pretended_device() as gpu:
        loss, x, labels = loss.to(gpu.device), embeddings.float().to(gpu.device), labels.to(gpu.device)
        for _ in range(2):  # a memory has something to compare with
            gpu.waits.clear()
            loss(x.requires_grad_(), labels.clone()).backward()
    assert len(gpu.waits) <= 2, gpu.waits


def test_what_a_loss_remembers_is_put_back_before_all_is_computed_anew():
    """Batches of equal embeddings fill the lists: step, memory and statistics are those of a loss computed once."""
    embeddings, labels = Batch((6,) * 16, 32).make(0)
    embeddings[:60] = embeddings[0]
    losses = {}
    with pretended_device() as gpu:
        for device in ("cpu", gpu.device):
            torch.manual_seed(0)
            losses[device] = loss = _sum(16).to(device)
            values = [loss(shift + embeddings.float().to(device), labels.to(device)).item() for shift in (0, 1, 2)]
            losses[device] = values, {name: torch.as_tensor(value).cpu() for name, value in _flat(loss.state_dict())}
    torch.testing.assert_close(losses[gpu.device], losses["cpu"], rtol=1e-4, atol=1e-5)


def _flat(state):
    for name, value in state.items():
        yield from (
            ((f"{name}.{key}", each) for key, each in value.items()) if isinstance(value, dict) else [(name, value)]
        )


def test_a_list_says_whether_it_was_long_enough():
    mask = torch.eye(3, 4) > 0
    row, column, real, missed = few_places(mask, 5)
    assert row.tolist() == [0, 1, 2, 0, 0] == column.tolist() and real.tolist() == [True] * 3 + [False] * 2
    assert not missed and not few_places(mask, 3).missed and few_places(mask, 2).missed


def test_lists_that_are_too_short_are_made_anew():
    """Very many members at one distance: what is found is exact all the same."""
    for name in ("nra", "triplet, hard", "lifted", "contrastive, wide"):
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 2, (200, 24), generator=generator).float() + 1e-6 * torch.randn(
            200, 24, generator=generator
        )
        x[:120] = x[0]
        labels = torch.arange(200) // 10
        loss = build(name, 24, 20)
        expected = value_and_gradients(loss, x, labels)
        with pretended_device() as gpu:
            found = [e.cpu() for e in value_and_gradients(loss, x.to(gpu.device), labels.to(gpu.device))]
        for each, there in zip(found, expected, strict=True):
            torch.testing.assert_close(each, there, rtol=1e-4, atol=1e-5)


def test_labels_that_change_are_read_again():
    embeddings, labels = BATCHES["unequal"].make(0)
    loss = NRALoss()
    with pretended_device() as gpu:
        x, y = embeddings.to(gpu.device), labels.to(gpu.device)
        loss(x, y)
        y.copy_(labels.flip(0))
        assert loss(x, y).item() == pytest.approx(loss(embeddings, labels.flip(0)).item())


def test_a_forgotten_device_is_found():
    class Forgetful(NRALoss):
        def forward(self, embeddings, labels):
            return super().forward(embeddings, labels) * torch.ones(1) + torch.arange(len(labels)).sum()

    embeddings, labels = BATCHES["unequal"].make(0)
    Forgetful()(embeddings, labels)  # on a CPU nobody sees it
    with pretended_device() as gpu, pytest.raises(MixedDevicesError, match="mul: a tensor"):
        Forgetful()(embeddings.to(gpu.device), labels.to(gpu.device))


def test_what_cuda_refuses_is_refused():
    with pretended_device() as gpu:
        x = torch.ones(3, device=gpu.device)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(x)
        with pytest.raises(MixedDevicesError):
            x[torch.tensor([[0, 1]])] + torch.zeros(2)
        with pytest.raises(MixedDevicesError):
            torch.cat([x, torch.ones(3)])
        assert gpu.waits == []
        assert (x * torch.tensor(2.0) + 1).tolist() == [3, 3, 3]  # one number of the CPU goes with all


def test_what_makes_the_host_wait_is_counted():
    with pretended_device() as gpu:
        x = torch.arange(6, device=gpu.device)
        mask = x > 2
        picked = torch.where(mask, x, 0).index_select(0, torch.zeros(2, dtype=torch.int64, device=gpu.device))
        assert gpu.waits == [] and picked.shape == (2,)
        for act in (
            lambda: float(x[0]),
            lambda: bool(mask.any()),
            lambda: x[mask],
            lambda: mask.nonzero(),
            lambda: x.unique(),
            lambda: x.cpu(),
            lambda: x.new_tensor([1, 2]),
            lambda: x.masked_fill(mask, 0).tolist(),
        ):
            gpu.waits.clear()
            act()
            assert len(gpu.waits) == 1, gpu.waits


@pytest.mark.parametrize("backend", ["ranks", "faiss"])
@pytest.mark.parametrize("kind", ["plain", "gallery", "collapsed"])
def test_the_evaluator_is_the_same_as_on_the_cpu(backend, kind):
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(150, 6)).astype(np.float32)), torch.arange(150) // 5
    if kind == "collapsed":
        x[20:60], x[::7] = x[3], x[1]
    gallery = {"gallery": x[:100], "gallery_labels": y[:100]} if kind == "gallery" else {}
    evaluate = Evaluator(backend=backend)
    expected = evaluate(x, y, **gallery)
    with pretended_device() as gpu:
        moved = {key: value.to(gpu.device) for key, value in gallery.items()}
        assert evaluate(x.to(gpu.device), y.to(gpu.device), **moved) == expected


class Accelerator(CPUAccelerator):
    def setup_device(self, device):
        pass


def trainer_on(device, folder, steps, **given):
    strategy = SingleDeviceStrategy(device, accelerator=Accelerator())
    callbacks = make_callbacks(
        folder=str(folder), monitor="val/recall@1", patience=None, minutes=60, stop=StopSignals()
    )
    return make_trainer(folder, steps, *callbacks, strategy=strategy, accelerator="auto", log_every_n_steps=2, **given)


def learner(loss=None):
    torch.manual_seed(0)
    return make_learner(
        loss=loss or NRALoss(),
        evaluator=Evaluator(ks=(1,), metrics=("recall", "map")),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        monitor="val/recall@1",
    )


def run(device, folder):
    """Four steps with a validation after every second, then two more of a run that goes on, and the test."""
    first = learner()
    trainer_on(device, folder, 4).fit(first, make_data(gallery=True))
    module, data = learner(), make_data(gallery=True)
    trainer = trainer_on(device, folder, 6)
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt"), weights_only=True)
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    trainer.test(module, data, verbose=False)
    return {name: value.cpu() for name, value in module.state_dict().items()}, logged, module.test_metrics


class Waits(pl.Callback):
    """How often the host waits in each step, logging included."""

    def __init__(self, waits):
        self.waits, self.steps = waits, []

    def on_train_batch_start(self, *_):  # the loggers are told of a step after its last hook
        # Of a CUDA device the loss of the step before has come by itself (dml/engine/finite.py).
        self.steps.append([wait for wait in self.waits if "finite.py" not in wait])
        self.waits.clear()


@pytest.mark.parametrize("losses", [{}, {"nra": NRALoss(), "triplet": TripletLoss(), "contrastive": ContrastiveLoss()}])
def test_the_host_waits_five_times_in_a_step_that_is_logged(losses, tmp_path):
    loss = SumLoss(losses=losses, weights=dict.fromkeys(losses, 1.0)) if losses else NRALoss()
    with pretended_device() as gpu:
        callback = Waits(gpu.waits)
        trainer = trainer_on(gpu.device, tmp_path, 6, val_check_interval=100, logger=CSVLogger(tmp_path))
        trainer.callbacks.insert(0, callback)
        trainer.fit(learner(loss), make_data())
    _, _, _, plain, logged, _ = callback.steps  # what comes before the first step comes first
    assert len(plain) <= 2 and 2 < len(logged) <= 5, (plain, logged)


def test_a_training_is_the_same_as_on_the_cpu(tmp_path):
    pl.seed_everything(0, verbose=False)
    weights, logged, metrics = run(torch.device("cpu"), tmp_path / "cpu")
    with pretended_device() as gpu:
        found = run(gpu.device, tmp_path / "gpu")
    torch.testing.assert_close(found[0], weights, rtol=1e-4, atol=1e-5)
    assert found[1] == pytest.approx(logged, rel=1e-3, abs=1e-5) and "train/active_anchors" in logged
    assert found[2] == pytest.approx(metrics, abs=1e-6)
