"""Losses forward and backward: ours, the plain formula under autograd, and pytorch-metric-learning.

`python -m benchmarks.losses [--sizes 128 2048 8192] [--classes 11318 100000] [--dim 512] [--device cpu|cuda] [--rounds
3] [--only NAME ...] [--no-memory] [--processor-time]`. Every case sees the same batch: m normal embeddings, 4 of each
class; those of the second table, with weights of `classes` classes, one of 512. Times are medians over rounds in which
all cases take turns, after one to warm up. With --processor-time times are those of the processor (give
OMP_NUM_THREADS=1), for a machine that others use too. Extra memory is the peak of a process of its own over what it
held before the call. A case that would take more memory or minutes than there are is left out by name.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import by_turns, extra_memory, in_process, machine, timed
from benchmarks.picture import draw
from dml.engine.allocator import keep_freed_memory
from dml.losses.angular import AngularLoss
from dml.losses.arc_face import ArcFaceLoss
from dml.losses.calibration import CalibrationLoss
from dml.losses.circle import CircleLoss
from dml.losses.clustering import ClusteringLoss
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.cos_face import CosFaceLoss
from dml.losses.cross_entropy import CrossEntropyLoss
from dml.losses.fast_ap import FastAPLoss
from dml.losses.generalized_lifted import GeneralizedLiftedLoss
from dml.losses.group import GroupLoss
from dml.losses.hist import HISTLoss
from dml.losses.histogram import HistogramLoss
from dml.losses.lifted import LiftedLoss
from dml.losses.margin import MarginLoss
from dml.losses.multi_similarity import MultiSimilarityLoss
from dml.losses.multimodal import MultimodalLoss
from dml.losses.nca import NCALoss
from dml.losses.normalized_softmax import NormalizedSoftmaxLoss
from dml.losses.npair import NPairLoss
from dml.losses.npair_angular import NPairAngularLoss
from dml.losses.nra import NRALoss
from dml.losses.nt_xent import NTXentLoss
from dml.losses.pddm import PDDMLoss
from dml.losses.proxy_anchor import ProxyAnchorLoss
from dml.losses.proxy_nca import ProxyNCALoss
from dml.losses.ranked_list import RankedListLoss
from dml.losses.recall_at_k import RecallAtKLoss
from dml.losses.roadmap import RoadmapLoss
from dml.losses.sigmoid_pairs import SigmoidPairsLoss
from dml.losses.smooth_ap import SmoothAPLoss
from dml.losses.snr import SNRLoss
from dml.losses.soft_triple import SoftTripleLoss
from dml.losses.sup_ap import SupAPLoss
from dml.losses.sup_con import SupConLoss
from dml.losses.triplet import TripletLoss
from dml.losses.tuplet_margin import TupletMarginLoss
from dml.products import matmul

Case = Callable[[Tensor, Tensor], Tensor]
PER_CLASS = 4
BATCH = 512  # of the tables by classes


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
    hard, triplet, mined = miners.BatchHardMiner(), losses.TripletMarginLoss(margin=1.0), miners.MultiSimilarityMiner()
    similar, weighted = losses.MultiSimilarityLoss(2, 50, 0.5), miners.DistanceWeightedMiner(0.5, 1.4)
    margin, snr = losses.MarginLoss(0.2, beta=1.2), losses.SignalToNoiseRatioContrastiveLoss()
    return {
        "hard triplet (pml)": lambda x, y: triplet(x, y, hard(x, y)),
        "contrastive (pml)": losses.ContrastiveLoss(),
        "multi_similarity (pml)": lambda x, y: similar(x, y, mined(x, y)),
        "circle (pml)": losses.CircleLoss(),
        "sup_con (pml)": losses.SupConLoss(temperature=0.1),
        "nt_xent (pml)": losses.NTXentLoss(temperature=0.1),
        "nca (pml)": losses.NCALoss(),
        "tuplet_margin (pml)": losses.TupletMarginLoss(),
        "ranked_list (pml)": losses.RankedListLoss(margin=0.4, Tn=10, alpha=1.2),
        "margin (pml)": lambda x, y: margin(x, y, weighted(x, y)),
        "calibration (pml)": losses.ThresholdConsistentMarginLoss(margin_plus=0.9, margin_minus=0.6),
        "snr (pml)": snr,
        "histogram (pml)": losses.HistogramLoss(n_bins=200),
        "smooth_ap (pml)": losses.SmoothAPLoss(),
        "fast_ap (pml)": losses.FastAPLoss(),
        "npair (pml)": losses.NPairsLoss(),
        "generalized_lifted (pml)": losses.GeneralizedLiftedStructureLoss(),
        "lifted (pml)": losses.LiftedStructureLoss(),
        "angular (pml)": losses.AngularLoss(alpha=45),
    }


def peers_with_weights(classes: int, dim: int) -> dict[str, Case]:
    """The same for losses with weights of the classes."""
    try:
        from pytorch_metric_learning import losses
    except ImportError:
        return {}
    return {
        "normalized_softmax (pml)": losses.NormalizedSoftmaxLoss(classes, dim),
        "cos_face (pml)": losses.CosFaceLoss(classes, dim),
        "arc_face (pml)": losses.ArcFaceLoss(classes, dim),
        "proxy_nca++ (pml)": losses.ProxyNCALoss(classes, dim, softmax_scale=9),
        "proxy_anchor (pml)": losses.ProxyAnchorLoss(classes, dim),
        "soft_triple, 2 centres (pml)": losses.SoftTripleLoss(classes, dim, centers_per_class=2),
    }


def with_weights(classes: int, dim: int, device: str) -> dict[str, Case]:
    """Losses that own weights of very many classes."""
    sizes: dict[str, Any] = {"embedding_dim": dim, "num_classes": classes}
    weights = torch.randn(classes, dim).to(device)
    found: dict[str, Case] = {
        "product": lambda x, y: x.sum() * 0 + once(x, weights, torch.mm),
        "product (oneDNN)": lambda x, y: x.sum() * 0 + once(x, weights, lambda a, b: matmul(a, b.T)),
        "cross_entropy": CrossEntropyLoss(**sizes),
        "normalized_softmax": NormalizedSoftmaxLoss(**sizes),
        "cos_face": CosFaceLoss(**sizes),
        "arc_face": ArcFaceLoss(**sizes),
        "proxy_nca": ProxyNCALoss(**sizes),
        "proxy_nca++": ProxyNCALoss(**sizes, scale=9, include_positive=True),
        "proxy_anchor": ProxyAnchorLoss(**sizes),
        "soft_triple, 2 centres": SoftTripleLoss(**sizes, centers_per_class=2),
        "hist": HISTLoss(**sizes),
        **peers_with_weights(classes, dim),
    }
    return found


def once(x: Tensor, weights: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The three products of forward and backward pass: logits, gradient of the embeddings, gradient of the weights."""
    with torch.no_grad():
        logits = product(x.detach(), weights.T)
        product(logits, weights)
        product(logits.T, x.detach())
    return 0.0


def cases(m: int, dim: int) -> dict[str, Case]:
    """All cases that a machine can hold at this batch size."""
    classes = max(1, m // PER_CLASS)
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
        "generalized_lifted": GeneralizedLiftedLoss(),
        "npair": NPairLoss(),
        "npair_angular": NPairAngularLoss(),
        "angular": AngularLoss(),
        "multi_similarity": MultiSimilarityLoss(),
        "circle": CircleLoss(),
        "sup_con": SupConLoss(),
        "nt_xent": NTXentLoss(),
        "nca": NCALoss(),
        "tuplet_margin": TupletMarginLoss(),
        "ranked_list": RankedListLoss(),
        "ranked_list, tpami": RankedListLoss(form="tpami"),
        "margin": MarginLoss(num_classes=classes),
        "calibration": CalibrationLoss(),
        "snr": SNRLoss(),
        "snr, triplet": SNRLoss(form="triplet"),
        "histogram": HistogramLoss(),
        "sigmoid_pairs": SigmoidPairsLoss(),
        "smooth_ap": SmoothAPLoss(),
        "sup_ap": SupAPLoss(),
        "roadmap": RoadmapLoss(),
        "fast_ap": FastAPLoss(),
        "recall_at_k": RecallAtKLoss(),
        "clustering": ClusteringLoss(),
        "group": GroupLoss(embedding_dim=dim, num_classes=classes),
        "multimodal": MultimodalLoss(embedding_dim=dim, num_classes=classes),
        "pddm": PDDMLoss(embedding_dim=dim),
        **peers(),
    }
    # The first two would take minutes; the others hold m x m numbers several times, m x m x d or more.
    limits = {"clustering": 512, "pddm": 2048, "multimodal": 512, "nra (plain)": 16384, "group": 16384}
    limits |= {f"{name} (pml)": 512 for name in ("lifted", "smooth_ap", "snr", "angular", "histogram")}
    limits |= {f"{name} (pml)": 512 for name in ("tuplet_margin", "nt_xent", "calibration")}
    limits |= {f"{name} (pml)": 2048 for name in ("margin", "fast_ap")}
    limits |= {name: 16384 for name in found if name.endswith("(pml)") and name not in limits}
    return _within(found, m, limits)


def _within(found: dict[str, Case], m: int, limits: dict[str, int]) -> dict[str, Case]:
    for name in [name for name, limit in limits.items() if name in found and m > limit]:
        print(f"left out at m = {m}: {name}")
        del found[name]
    return found


def blocked(x: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The bare product of all rows with all in blocks: what no method that sees all distances can beat."""
    with torch.no_grad():
        for rows in x.detach().split(max(256, 2**26 // len(x)) if x.is_cuda else 256):
            product(rows, x.detach().T)
    return 0.0


def batch(m: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """The embeddings and labels that every case gets."""
    x = torch.randn(m, dim, generator=torch.Generator().manual_seed(0))
    return x.to(device).requires_grad_(), (torch.arange(m) // PER_CLASS).to(device)


def on_device(case: Case, device: str) -> Case:
    """The case, with its weights there if it has any."""
    return case.to(device) if isinstance(case, torch.nn.Module) else case


def step(case: Case, x: Tensor, labels: Tensor) -> None:
    """One forward and backward pass."""
    x.grad = None
    case(x, labels).backward()


def main() -> None:
    """Print a table for each size, and one for each number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 2048, 8192])
    parser.add_argument("--classes", type=int, nargs="*", default=[11318, 100000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=Path("outputs/benchmarks/losses.png"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.memory_of:
        keep_freed_memory()  # as engine.reuse_memory does in training
    if options.memory_of:
        found = _tables(options)[0][3]
        case = partial(step, on_device(found[options.memory_of], options.device))
        m = options.sizes[0] if options.sizes else BATCH
        large, small = (batch(n, options.dim, options.device) for n in (m, 64))
        print(extra_memory(case, large, small, options.device))
        return
    print(machine(options.device))
    printed = []
    for m, title, given, found in _tables(options):
        keep = ("product", "product (oneDNN)", *options.only)
        some = {name: found[name] for name in found if not options.only or name in keep}
        printed += table(m, title, given, some, options)
    if len(set(options.sizes)) > 1 and options.memory:
        draw("\n".join(printed), options.picture)
        print(f"\nPicture: {options.picture}")


def _tables(options: argparse.Namespace) -> list[tuple[int, str, tuple[object, ...], dict[str, Case]]]:
    """Batch size, heading, the arguments that choose it, and cases of each table."""
    dim = options.dim
    by_size = [(m, f"m = {m}, d = {dim}", ("--sizes", m, "--classes"), cases(m, dim)) for m in options.sizes]
    by_classes = [
        (
            BATCH,
            f"{n} classes, m = {BATCH}, d = {dim}",
            ("--sizes", "--classes", n),
            with_weights(n, dim, options.device),
        )
        for n in options.classes
    ]
    return [*by_size, *by_classes]


def table(
    m: int, title: str, given: tuple[object, ...], found: dict[str, Case], options: argparse.Namespace
) -> list[str]:
    """Time all cases of one table by turns, then measure the memory of each."""
    x, labels = batch(m, options.dim, options.device)
    for case in found.values():
        on_device(case, options.device)
    clock = time.process_time if options.processor_time else time.perf_counter
    chosen = {name: timed(step, case, x, labels, device=options.device, clock=clock) for name, case in found.items()}
    median = by_turns(chosen, options.rounds, repeats=20 if m <= 128 else 1)
    floor = min(median["product"], median["product (oneDNN)"])
    lines = ["", f"| {title} | ms | times the product | extra MB |", "|---|---:|---:|---:|"]
    print("\n".join(lines), flush=True)
    given = (*given, "--dim", options.dim, "--device", options.device)
    for name, seconds in median.items():
        memory = in_process("benchmarks.losses", "--memory-of", name, *given) if options.memory else ""
        lines.append(f"| {name} | {1000 * seconds:.1f} | {seconds / floor:.2f} | {memory} |")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
