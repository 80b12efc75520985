"""One batch on several processes is one batch: rows in the order of ranks, and the gradient of a single process."""

import copy
import os

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from dml.engine.diagnostics import Diagnostics
from dml.engine.gather import add_over_ranks, gather_batch, gather_rows, processes
from dml.engine.micro_batch import embed_in_chunks
from dml.losses.cross_entropy import CrossEntropyLoss
from dml.losses.nra import NRALoss
from tests.engine.conftest import attach, make_data, make_learner, records

SIZES = {2: (5, 7), 3: (6, 1, 5)}  # unequal parts of one batch of 12


class _Both(nn.Module):
    """A loss with weights of its own beside one without."""

    def __init__(self):
        super().__init__()
        self.owned = CrossEntropyLoss(embedding_dim=3, num_classes=4)
        self.ranks = NRALoss()

    def forward(self, embeddings, labels):
        return self.ranks(embeddings, labels) + self.owned(embeddings, labels)


def _model_and_batch():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embedder": nn.Linear(5, 3), "loss": _Both()}).double()
    return model, torch.randn(12, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3] * 3)


def _gradients(model, images, labels):
    embeddings, labels = gather_batch(model["embedder"](images), labels)
    loss = model["loss"](embeddings, labels)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def _check(world):
    rank, (model, images, labels) = dist.get_rank(), _model_and_batch()
    expected_loss, expected = _single_process(model, images, labels)
    start = sum(SIZES[world][:rank])
    mine = slice(start, start + SIZES[world][rank])

    gathered, gathered_labels = gather_batch(images[mine], labels[mine])
    assert torch.equal(gathered, images) and torch.equal(gathered_labels, labels)
    assert torch.equal(gather_rows(labels[mine]), labels)
    assert torch.equal(gather_rows(images[:0] if rank else images), images)  # a rank with nothing

    loss, gradients = _gradients(copy.deepcopy(model), images[mine], labels[mine])
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    for gradient, wanted in zip(gradients, expected, strict=True):
        dist.all_reduce(gradient)  # as DDP: the mean over ranks
        torch.testing.assert_close(gradient / world, wanted, rtol=1e-5, atol=1e-12)

    _check_chunks(model, images[mine], labels[mine], expected)
    _check_diagnostics(model, images, labels, mine)
    for number in (2, 3, 11):
        _check_evaluation(number)

    assert processes() == (rank, world)
    total = add_over_ranks(np.array([1, 2]) * 10**rank, torch.device("cpu"))
    assert total.dtype == np.int64 and total.tolist() == {2: [11, 22], 3: [111, 222]}[world]
    assert add_over_ranks(np.array([0.5 + rank]), torch.device("cpu")).tolist() == [{2: 2.0, 3: 4.5}[world]]


class _Chunked(nn.Module):
    """A training step that embeds three images at a time."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, labels):
        embeddings = embed_in_chunks(self.model["embedder"], images, 3)
        return self.model["loss"](*gather_batch(embeddings, labels))


def _check_chunks(model, images, labels, expected):
    """Gradient caching under DistributedDataParallel: the gradients of one process, each exchanged once."""
    parallel, exchanged = DistributedDataParallel(_Chunked(copy.deepcopy(model))), []

    def exchange(world, bucket):
        exchanged.extend(id(parameter) for parameter in bucket.parameters())
        dist.all_reduce(bucket.buffer().div_(world))
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    parallel.register_comm_hook(dist.get_world_size(), exchange)
    parallel(images, labels).backward()
    parameters = list(parallel.parameters())
    assert sorted(exchanged) == sorted(map(id, parameters))
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-12)


def _check_diagnostics(model, images, labels, mine):
    """Every rank finds what one process finds of the whole batch."""

    def found(embeddings, labels):
        watcher = Diagnostics()
        watcher.see(model["loss"].ranks, embeddings, labels, 0)
        model["loss"](embeddings, labels).backward()
        return watcher.after_backward([])

    wanted, of_ranks = (
        found(model["embedder"](images), labels),
        found(*gather_batch(model["embedder"](images[mine]), labels[mine])),
    )
    assert len(wanted) == 6
    for name, value in wanted.items():
        torch.testing.assert_close(of_ranks[name], value, rtol=1e-6, atol=0)


def _check_evaluation(number):
    """Fewer images than ranks, as many and more: each counts once, and no rank is waited for."""
    data, learner = make_data(), make_learner()
    data._test = type(data._test)(records(number, 2), data._test.transform)
    attach(data, rank=dist.get_rank(), world_size=dist.get_world_size())
    (loader,) = data.test_dataloader()
    with torch.no_grad():
        for i, batch in enumerate(loader):
            learner.test_step(batch, i)
        embeddings, labels = learner._put_together(0)
        expected = learner(torch.from_numpy(records(number, 2).images).permute(0, 3, 1, 2))
    torch.testing.assert_close(embeddings, expected)
    assert labels.tolist() == records(number, 2).labels.tolist()


def _single_process(model, images, labels):
    model = copy.deepcopy(model)
    loss = model["loss"](model["embedder"](images), labels)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def _worker(rank, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for world in SIZES:
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
            _check(world)
            dist.destroy_process_group()


def test_two_and_three_processes_are_one(tmp_path):
    start_processes(_worker, (str(tmp_path),), nprocs=3, start_method="spawn")


def test_without_a_process_group_everything_is_the_identity():
    model, images, labels = _model_and_batch()
    expected_loss, expected = _single_process(model, images, labels)
    loss, gradients = _gradients(model, images, labels)
    assert torch.equal(loss, expected_loss) and all(map(torch.equal, gradients, expected))
    assert gather_batch(images, labels)[0] is images and gather_rows(labels) is labels
    assert processes() == (0, 1) and add_over_ranks(values := np.ones(3), torch.device("cpu")) is values
