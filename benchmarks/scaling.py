"""One batch and one evaluation on more processes: what each further core or GPU brings.

`python -m benchmarks.scaling [--processes 1 2] [--network googlenet] [--batch 32] [--items 20000] [--device cuda]`.
A training step of the global batch with DDP, the gather and the NRA loss, as the engine does it, and the ranks of all
positives among random embeddings of 512 dimensions (classes of five). On a CPU each process has one thread. Medians.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import finish, machine
from dml.engine.gather import add_over_ranks, gather_batch, processes
from dml.losses.nra import NRALoss
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder
from dml.retrieval.ranks import positive_ranks

DIM = 512


def measure(rank: int, count: int, options: argparse.Namespace, answer: Any) -> None:
    """One of `count` processes; the first answers with images per second and the seconds of an evaluation."""
    if options.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device(options.device)
    if options.device == "cuda":
        torch.cuda.set_device(device)  # NCCL uses it, and so does what waits for it
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo", rank=rank, world_size=count)
    torch.manual_seed(0)
    embedder = Embedder(backbone=create_backbone(name=options.network), dim=DIM).to(device)
    network = DistributedDataParallel(embedder)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randint(0, 256, (options.batch, 3, 224, 224), dtype=torch.uint8).tensor_split(count)[rank].to(device)
    labels = (torch.arange(options.batch) // 4).tensor_split(count)[rank].to(device)
    loss = NRALoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(*gather_batch(network(images), labels)).backward()
        optimizer.step()

    embeddings = torch.randn(options.items, DIM, device=device)
    classes = (torch.arange(options.items) // 5).numpy()

    def evaluate() -> None:
        positive_ranks(embeddings, classes, share=processes(), add_up=lambda part: add_over_ranks(part, device))

    def seconds(work: Callable[[], None]) -> float:
        found = []
        for _ in range(options.rounds + 1):
            dist.barrier()
            finish(options.device)
            start = time.perf_counter()
            work()
            finish(options.device)
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])

    training, evaluation = seconds(step), seconds(evaluate)
    if rank == 0:
        answer.put((options.batch / training, evaluation))
    dist.destroy_process_group()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--network", default="googlenet")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{machine(options.device)}, batch {options.batch}\n")
    print(
        f"| processes | {options.network}, images/s | ranks of {options.items:,} items, s |\n|---:|---:|---:|",
        flush=True,
    )
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29577")
    for count in options.processes:
        answer = mp.get_context("spawn").SimpleQueue()
        mp.spawn(measure, (count, options, answer), count)
        rate, evaluation = answer.get()
        print(f"| {count} | {rate:.1f} | {evaluation:.2f} |", flush=True)


if __name__ == "__main__":
    main()
