"""Losses forward and backward: ours, the plain formula under autograd, and pytorch-metric-learning.

`python -m benchmarks.losses [--sizes 128 2048 8192] [--dim 512] [--device cpu|cuda]`. Every case sees the same batch: m
normal embeddings, 4 of each class. Times are medians over rounds in which all cases take turns, after one to warm up.
Extra memory is the peak of a process of its own over what it held before the call. A case that would take more memory
than the machine has is left out by name.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import by_turns, extra_memory, in_process, timed
from dml.losses.circle import CircleLoss
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.fast_ap import FastAPLoss
from dml.losses.generalized_lifted import GeneralizedLiftedLoss
from dml.losses.lifted import LiftedLoss
from dml.losses.multi_similarity import MultiSimilarityLoss
from dml.losses.nca import NCALoss
from dml.losses.npair import NPairLoss
from dml.losses.nra import NRALoss
from dml.losses.nt_xent import NTXentLoss
from dml.losses.recall_at_k import RecallAtKLoss
from dml.losses.smooth_ap import SmoothAPLoss
from dml.losses.sup_ap import SupAPLoss
from dml.losses.sup_con import SupConLoss
from dml.losses.triplet import TripletLoss
from dml.losses.tuplet_margin import TupletMarginLoss
from dml.products import matmul

Case = Callable[[Tensor, Tensor], Tensor]
PER_CLASS = 4


def plain_transfer(r: Tensor, alpha: float) -> Tensor:
    """Eq. 10 as one writes it."""
    return torch.where(r < 0.5, 0.5 * (2 * r) ** alpha, 1 - 0.5 * (2 - 2 * r) ** alpha)


def plain_nra(x: Tensor, labels: Tensor, alpha: float = 4.0, epsilon: float = 1e-4) -> Tensor:
    """The formula as one writes it: the whole matrix by torch.cdist, masks, autograd."""
    d = torch.cdist(x, x)
    self_ = torch.eye(len(x), dtype=torch.bool, device=x.device)
    same = labels[:, None] == labels[None, :]
    least = d.masked_fill(self_, torch.inf).amin(dim=1)
    span = d.amax(dim=1) - least
    positive = d.masked_fill(~same | self_, -torch.inf).amax(dim=1)
    negative = d.masked_fill(same, torch.inf).amin(dim=1)
    s_positive, s_negative = (1 - plain_transfer((each - least) / span, alpha) for each in (positive, negative))
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
        "circle (pml)": losses.CircleLoss(),
        "sup_con (pml)": losses.SupConLoss(temperature=0.1),
        "nt_xent (pml)": losses.NTXentLoss(temperature=0.1),
        "nca (pml)": losses.NCALoss(),
        "tuplet_margin (pml)": losses.TupletMarginLoss(),
        "fast_ap (pml)": losses.FastAPLoss(),
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
        "multi_similarity": MultiSimilarityLoss(),
        "circle": CircleLoss(),
        "sup_con": SupConLoss(),
        "nt_xent": NTXentLoss(),
        "generalized_lifted": GeneralizedLiftedLoss(),
        "nca": NCALoss(),
        "tuplet_margin": TupletMarginLoss(),
        "smooth_ap": SmoothAPLoss(),
        "sup_ap": SupAPLoss(),
        "fast_ap": FastAPLoss(),
        "recall_at_k": RecallAtKLoss(),
        **peers(),
    }
    limits = {"lifted, eq. 3 (pml)": 512, "nra (plain)": 16384}
    limits |= {name: 16384 for name in found if name.endswith("(pml)") and name not in limits}
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


def step(case: Case, x: Tensor, labels: Tensor) -> None:
    """One forward and backward pass."""
    x.grad = None
    case(x, labels).backward()


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
        case = partial(step, cases(options.sizes[0])[options.memory])
        large, small = (batch(m, options.dim, options.device) for m in (options.sizes[0], 64))
        print(extra_memory(case, large, small, options.device))
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for m in options.sizes:
        table(m, options)


def table(m: int, options: argparse.Namespace) -> None:
    """Time all cases of one size by turns, then measure the memory of each."""
    x, labels = batch(m, options.dim, options.device)
    chosen = {name: timed(step, case, x, labels, device=options.device) for name, case in cases(m).items()}
    median = by_turns(chosen, options.rounds, repeats=20 if m <= 512 else 1)
    floor = min(median["product"], median["product (oneDNN)"])
    print(f"\n| m = {m}, d = {options.dim} | ms | times the product | extra MB |\n|---|---:|---:|---:|", flush=True)
    given = ("--sizes", m, "--dim", options.dim, "--device", options.device)
    for name, seconds in median.items():
        memory = in_process("benchmarks.losses", "--memory", name, *given)
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / floor:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
