"""Gradient caching: a large batch in the memory of a small one, and what that costs.

`python -m benchmarks.micro_batch [--network googlenet] [--batch 256] [--size 32] [--precision bf16] [--device cuda]`.
Three steps with the NRA loss, each in a process of its own: plain on `--size` images, plain on `--batch` images, and on
`--batch` images `--size` at a time. Images per second are of the fastest step, extra memory is the peak over what was
held before. `--skip-whole` leaves out the plain step on the whole batch, where that would take the machine down.
"""

import argparse
import subprocess
import sys
import time

import torch

from benchmarks.measure import finish, machine, most_memory
from dml.engine.micro_batch import embed_in_chunks
from dml.losses.nra import NRALoss
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder


def measure(batch: int, size: int, options: argparse.Namespace) -> tuple[float, float]:
    """Images per second, and MB beyond network, gradients and batch. For a process of its own."""
    torch.manual_seed(0)
    embedder = Embedder(backbone=create_backbone(name=options.network), dim=512).to(options.device)
    optimizer = torch.optim.SGD(embedder.parameters(), lr=1e-4, momentum=0.9)
    loss = NRALoss()
    images = torch.randint(0, 256, (batch, 3, options.pixels, options.pixels), dtype=torch.uint8, device=options.device)
    labels = torch.arange(batch, device=options.device) // 4

    def step(n: int) -> float:
        finish(options.device)
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            x = images[:n]
            value = loss(embed_in_chunks(embedder, x, size) if size < n else embedder(x), labels[:n])
        value.backward()
        optimizer.step()
        finish(options.device)
        return time.perf_counter() - start

    step(8)  # gradients, momentum and libraries take their memory
    before = most_memory(options.device, forget=True)
    seconds = min(step(batch) for _ in range(options.rounds))
    return batch / seconds, most_memory(options.device) - before


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="googlenet")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--skip-whole", action="store_true", help="the plain step on the whole batch")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        batch, size = options.one
        print(*measure(batch, size, options))
        return
    print(machine(options.device))
    print(f"\n| {options.network}, {options.precision} | images/s | extra MB |\n|---|---:|---:|", flush=True)
    small, large = options.size, options.batch
    cases = {f"{small}, plain": (small, small), f"{large}, {small} at a time": (large, small)}
    if not options.skip_whole:
        cases[f"{large}, plain"] = (large, large)
    for name, case in cases.items():
        command = [sys.executable, "-m", "benchmarks.micro_batch", *sys.argv[1:], "--one", *map(str, case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {name} | failed | failed |", flush=True)
            continue
        rate, memory = map(float, done.stdout.split()[-2:])
        print(f"| {name} | {rate:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
