"""Losses forward and backward: ours, the plain formula under autograd, and pytorch-metric-learning.

`python -m benchmarks.losses [--sizes 128 2048 8192] [--dim 512] [--device cpu|cuda]`. Every case sees the same batch: m
normal embeddings, 4 of each class. Times are medians over rounds in which all cases take turns, after one to warm up.
Extra memory is the peak of a process of its own over what it held before the call. A case that would take more memory
than the machine has is left out by name.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dml.losses.contrastive import ContrastiveLoss
from dml.losses.lifted import LiftedLoss
from dml.losses.npair import NPairLoss
from dml.losses.nra import NRALoss, transfer
from dml.losses.pairwise import matmul
from dml.losses.triplet import TripletLoss

Case = Callable[[Tensor, Tensor], Tensor]
PER_CLASS = 4


def plain_nra(x: Tensor, labels: Tensor, alpha: float = 4.0, epsilon: float = 1e-4) -> Tensor:
    """The formula as one writes it: the whole matrix by torch.cdist, masks, autograd."""
    d = torch.cdist(x, x)
    self_ = torch.eye(len(x), dtype=torch.bool, device=x.device)
    same = labels[:, None] == labels[None, :]
    least = d.masked_fill(self_, torch.inf).amin(dim=1)
    span = d.amax(dim=1) - least
    positive = d.masked_fill(~same | self_, -torch.inf).amax(dim=1)
    negative = d.masked_fill(same, torch.inf).amin(dim=1)
    s_positive, s_negative = (1 - transfer((each - least) / span, alpha) for each in (positive, negative))
    return -(torch.log(s_positive + epsilon) + torch.log(1 - s_negative + epsilon)).mean()


def peers() -> dict[str, Case]:
    """The library most people use, with the settings that fit ours; empty where it is not installed."""
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        print("pytorch-metric-learning is not installed: pip install -e '.[bench]'", file=sys.stderr)
        return {}
    hard, triplet = miners.BatchHardMiner(), losses.TripletMarginLoss(margin=1.0)
    return {
        "hard triplet (pml)": lambda x, y: triplet(x, y, hard(x, y)),
        "contrastive (pml)": losses.ContrastiveLoss(),
        "lifted (pml)": losses.GeneralizedLiftedStructureLoss(),
        "lifted, eq. 3 (pml)": losses.LiftedStructureLoss(),
    }


def cases(m: int) -> dict[str, Case]:
    """All cases that a machine can hold at this batch size."""
    found: dict[str, Case] = {
        "product": lambda x, y: x.sum() * 0 + blocked(x, torch.mm),
        "product (oneDNN)": lambda x, y: x.sum() * 0 + blocked(x, lambda a, b: matmul(a, b.T)),
        "nra": NRALoss(),
        "nra (plain)": plain_nra,
        "hard triplet": TripletLoss(mining="hard"),
        "semi-hard triplet": TripletLoss(mining="semi_hard"),
        "all triplets": TripletLoss(mining="all"),
        "contrastive": ContrastiveLoss(),
        "lifted": LiftedLoss(),
        "npair": NPairLoss(),
        **peers(),
    }
    limits = {"lifted, eq. 3 (pml)": 512, "nra (plain)": 16384}
    limits |= dict.fromkeys(("hard triplet (pml)", "contrastive (pml)", "lifted (pml)"), 16384)
    for name in [name for name, limit in limits.items() if name in found and m > limit]:
        print(f"left out at m = {m}: {name}")
        del found[name]
    return found


def blocked(x: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The bare product of all rows with all, 256 at a time: what no method that sees all distances can beat."""
    with torch.no_grad():
        for rows in x.detach().split(256):
            product(rows, x.detach().T)
    return 0.0


def batch(m: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """The embeddings and labels that every case gets."""
    x = torch.randn(m, dim, generator=torch.Generator().manual_seed(0))
    return x.to(device).requires_grad_(), (torch.arange(m) // PER_CLASS).to(device)


def step(case: Case, x: Tensor, labels: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    case(x, labels).backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def extra_memory(name: str, m: int, dim: int, device: str) -> float:
    """Peak [MB] of one forward and backward pass over what was held before it. For a process of its own."""
    case, (x, labels) = cases(m)[name], batch(m, dim, device)
    small, few = batch(64, dim, device)
    step(case, small, few)  # libraries allocate at their first call
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(case, x, labels)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = peak()
    step(case, x, labels)
    return peak() - before


def peak() -> float:
    """Largest resident memory [MB] of this process since its last reset."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 2048, 8192])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(extra_memory(options.memory, options.sizes[0], options.dim, options.device))
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for m in options.sizes:
        table(m, options)


def table(m: int, options: argparse.Namespace) -> None:
    """Time all cases of one size by turns, then measure the memory of each."""
    chosen, (x, labels) = cases(m), batch(m, options.dim, options.device)
    repeats = 20 if m <= 512 else 1
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(options.rounds + 1):
        for name, case in chosen.items():
            seconds = [step(case, x, labels) for _ in range(repeats)]
            if turn:
                times[name] += seconds
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    floor = min(median["product"], median["product (oneDNN)"])
    print(f"\n| m = {m}, d = {options.dim} | ms | times the product | extra MB |\n|---|---:|---:|---:|", flush=True)
    for name, seconds in median.items():
        command = [sys.executable, "-m", "benchmarks.losses", "--memory", name, "--sizes", str(m)]
        command += ["--dim", str(options.dim), "--device", options.device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        memory = f"{float(done.stdout.split()[-1]):.0f}" if done.returncode == 0 else "failed"
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / floor:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
