"""Training by DistributedDataParallel on two and three processes is training on one, for every loss."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from dml.engine.gather import gather_batch
from tests.losses.table import EVERY, build

# Parts of a batch of 15, three of each class: classes stand on two ranks, and the last batch is smaller and uneven.
PARTS = {1: [(15,), (15,), (10,)], 2: [(8, 7), (8, 7), (7, 3)], 3: [(5, 5, 5), (5, 5, 5), (4, 5, 1)]}


class Learner(nn.Module):
    """What MetricLearner does in a training step."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.embedder = nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 6))
        self.loss = build(name, embedding_dim=6, num_classes=5)
        self._ddp_params_and_buffers_to_ignore = [f"loss.{key}" for key, _ in self.loss.named_buffers()]

    def forward(self, images, labels):
        return self.loss(*gather_batch(self.embedder(images), labels))


# NRA multiplies the rounding of embeddings, which differs with the rows of a product, by its steep transfer function.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def train(name, dtype, world, rank=0):
    """Of each of three steps the loss and all gradients, and the weights in the end."""
    learner = Learner(name).to(dtype)
    step = DistributedDataParallel(learner) if world > 1 else learner
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)
    generator, told = torch.Generator().manual_seed(1), []
    for parts in PARTS[world]:
        images, labels = torch.randn(15, 9, generator=generator).to(dtype), torch.arange(15) // 3
        start = sum(parts[:rank])
        mine = slice(start, start + parts[rank])
        optimizer.zero_grad()
        loss = step(images[mine], labels[mine])
        loss.backward()
        told.append((loss.detach(), [parameter.grad.clone() for parameter in learner.parameters()]))
        optimizer.step()
    return told, [parameter.detach() for parameter in learner.parameters()]


def assert_same(found, expected, tolerance):
    (steps, weights), (wanted_steps, wanted_weights) = found, expected
    for (loss, gradients), (wanted_loss, wanted) in zip(steps, wanted_steps, strict=True):
        torch.testing.assert_close(loss, wanted_loss, rtol=tolerance, atol=tolerance)
        scale = max(gradient.abs().max() for gradient in wanted)
        for gradient, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=0, atol=tolerance * scale)
    for weight, other in zip(weights, wanted_weights, strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=tolerance * other.abs().max())


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for world in (2, 3):
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
            found = {(name, dtype): train(name, dtype, world, rank) for name in EVERY for dtype in TOLERANCE}
            dist.destroy_process_group()
            torch.save([(*key, *value) for key, value in found.items()], f"{folder}/{world}-{rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    start_processes(worker, (str(folder),), nprocs=3, start_method="spawn")
    return folder


@pytest.mark.parametrize(("world", "rank"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_each_rank_has_the_losses_gradients_and_weights_of_one_process(trained, world, rank):
    found = torch.load(trained / f"{world}-{rank}.pt")
    assert len(found) == 2 * len(EVERY)
    for name, dtype, *values in found:
        steep = "nra" in name and dtype == torch.float32
        assert_same(values, train(name, dtype, 1), 1e-4 if steep else TOLERANCE[dtype])
