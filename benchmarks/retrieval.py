"""Evaluation at the sizes of CUB-200-2011 and Stanford Online Products: ours, FAISS, and pytorch-metric-learning.

`python -m benchmarks.retrieval [--sizes cub sop] [--dim 512] [--device cpu|cuda]`. Normalised embeddings of classes as
large as the data set's: around class centres, so that Recall@1 is that of a trained network, or with --untrained at
random, which leaves the most to decide one by one. Times are medians over rounds in which all cases take turns, after
one to warm up. Extra memory is the peak of a process of its own over what it held before the call.

`--collapsed [--backend ranks|faiss]` times embeddings that are hard to tell apart, as multiples of ordinary ones of the
same size that take turns with them. `--sizes ten` is 60,000 images of 10 classes, of which memory alone is taken;
`--sizes million` is for a GPU: the product and Recall@K alone.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import by_turns, extra_memory, in_process, machine, timed
from dml.products import matmul
from dml.retrieval.evaluator import Evaluator, Metric

# Images, classes, noise for Recall@1 of about 70 % (of ten: of any).
SIZES = {
    "cub": (5924, 100, 3.4),
    "sop": (60502, 11316, 2.25),
    "ten": (60000, 10, 3.4),
    "million": (1_000_000, 200_000, 2.25),
}
RANKED: tuple[Metric, ...] = ("recall", "map@r", "r_precision", "map", "mrr")
Case = Callable[[Tensor, np.ndarray], Any]
_FAISS_ON_GPU = hasattr(faiss, "index_cpu_to_all_gpus")  # of another package than faiss-cpu


def embeddings(images: int, classes: int, noise: float, dim: int, device: str) -> tuple[Tensor, np.ndarray]:
    """[images, dim] and labels; as many images of each class, give or take one."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(images) % classes)
    x = rng.standard_normal((images, dim), dtype=np.float32) * np.float32(noise)
    if np.isfinite(noise):
        x += rng.standard_normal((classes, dim), dtype=np.float32)[labels]
    else:
        x = rng.standard_normal((images, dim), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(x).to(device), labels


def product(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, labels: np.ndarray) -> None:
    """All rows with all, a tile at a time: what no method that sees all distances (twice) can beat."""
    tile = 8192 if x.is_cuda else 1024
    for rows in x.split(tile):
        for columns in x.split(tile):
            multiply(rows, columns)


def search(k: int, x: Tensor, labels: np.ndarray) -> None:
    """FAISS's flat index alone, on the GPU for embeddings there if this FAISS has one."""
    index: Any = faiss.IndexFlatL2(x.shape[1])
    if x.is_cuda and _FAISS_ON_GPU:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(x.cpu().numpy())
    index.search(x.cpu().numpy(), k)


def peer(x: Tensor, labels: np.ndarray, **given: Any) -> None:
    """pytorch-metric-learning's calculator, of the rank metrics that it has."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r", *given.pop("more", ()))
    AccuracyCalculator(include=include, device=x.device, **given).get_accuracy(x, torch.from_numpy(labels).to(x.device))


def cases(images: int, classes: int) -> dict[str, Case]:
    """By name."""
    if classes == 10:
        return {"all rank metrics": Evaluator(metrics=RANKED, normalize=False)}
    found: dict[str, Case] = {
        "product": partial(product, lambda a, b: a @ b.T),
        "product (oneDNN)": partial(product, matmul),
        "recall": Evaluator(ks=(1, 10, 100, 1000), metrics=("recall",), normalize=False),
        "all rank metrics": Evaluator(ks=(1, 10, 100, 1000), metrics=RANKED, normalize=False),
        "FAISS, k = 1": partial(search, 2),
        "FAISS, k = 1000": partial(search, 1001),
        "MAP@R (pml, R neighbours)": partial(peer, k="max_bin_count"),
    }
    if images > 100_000:
        return {name: found[name] for name in ("product", "product (oneDNN)", "recall")}
    if images < 20_000:
        more = ("mean_reciprocal_rank", "mean_average_precision")
        found["all rank metrics (pml)"] = partial(peer, k=None, more=more)
    return found


def collapsed(x: Tensor, labels: np.ndarray) -> dict[str, Tensor]:
    """Embeddings that are hard to tell apart, by name; the first ones are ordinary."""
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(x.device)
    points = torch.from_numpy(rng.standard_normal((labels.max() + 1, x.shape[1])))
    points = torch.nn.functional.normalize(points, dim=1)[torch.from_numpy(labels)].to(x.device)
    row = torch.arange(len(x), device=x.device)
    found = {
        "ordinary": x,
        "all rows equal": x[:1].expand_as(x),
        "every tenth row equal": torch.where(row[:, None] % 10 == 0, x[:1], x),
        "two clusters of equal rows": x[row % 2],
        "all rows zero": torch.zeros_like(x),
        "equal after normalisation": x[row // 50 * 50] * (1 + row[:, None] % 4),
        "equal but for 1e-7": x[:1] + 1e-7 * noise,
        "two clusters, equal but for 1e-7": x[row % 2] + 1e-7 * noise,
        "every tenth row equal but for 1e-7": torch.where(row[:, None] % 10 == 0, x[:1] + 1e-7 * noise, x),
        "each class equal but for 1e-7": points + 1e-7 * noise,
        "whole numbers": (noise * 2).round(),
        "signs": noise.sign(),
        "bfloat16": x.bfloat16(),
        "one dimension": x[:, :1],
    }
    return {name: each.float().contiguous() for name, each in found.items()}


def ratios(x: Tensor, labels: np.ndarray, backend: Any, rounds: int) -> None:
    """Print times as multiples of that of ordinary embeddings."""
    inputs, medians = collapsed(x, labels), []
    for names in (RANKED[:1], RANKED):
        for normalize in (True, False):
            if backend == "faiss" and (len(names) > 1 or not normalize):
                continue  # it ranks whole lists one by one, whatever is in them
            evaluator = Evaluator(ks=(1,), metrics=names, normalize=normalize, backend=backend)
            device = str(x.device)
            medians.append(
                by_turns({name: timed(evaluator, each, labels, device=device) for name, each in inputs.items()}, rounds)
            )
    print("|" + "---|" * (len(medians) + 1))
    for name in inputs:
        print(
            f"| {name} | " + " | ".join(f"{each[name] / each['ordinary']:.2f}" for each in medians) + " |", flush=True
        )
    print("ordinary: " + ", ".join(f"{each['ordinary']:.2f} s" for each in medians))


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=["cub", "sop"])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--untrained", action="store_true", help="embeddings at random")
    parser.add_argument("--collapsed", action="store_true", help="embeddings that are hard to tell apart")
    parser.add_argument("--backend", default="ranks")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = ["--dim", options.dim, "--device", options.device, *(["--untrained"] if options.untrained else [])]
    print(machine(options.device))
    for size in options.sizes:
        images, classes, noise = SIZES[size]
        noise = np.inf if options.untrained else noise
        x, labels = embeddings(images, classes, noise, options.dim, options.device)
        if options.collapsed:
            ratios(x, labels, options.backend, options.rounds)
            continue
        if options.memory:
            case, small = (
                cases(images, classes)[options.memory],
                embeddings(1500, 300, noise, options.dim, options.device),
            )
            print(extra_memory(case, (x, labels), small, options.device))
            return
        title = f"{images} x {options.dim}, {classes} classes"
        if classes == 10:
            held = in_process("benchmarks.retrieval", "--memory", "all rank metrics", "--sizes", size, *given)
            print(f"{title}: {held} extra MB")
            continue
        table(title, cases(images, classes), x, labels, options.rounds, ["--sizes", size, *given])


def table(title: str, chosen: dict[str, Case], x: Tensor, labels: np.ndarray, rounds: int, given: list[Any]) -> None:
    """Time all cases by turns, then measure the memory of each."""
    found = chosen.get("all rank metrics", chosen["recall"])(x, labels)
    print("\n" + ", ".join(f"{key} {found[key]:.3f}" for key in ("recall@1", "map@r") if key in found), file=sys.stderr)
    if x.is_cuda and not _FAISS_ON_GPU:
        print("this FAISS has no GPU: its rows are of the CPU, with the copy to it")
    device = str(x.device)
    median = by_turns({name: timed(case, x, labels, device=device) for name, case in chosen.items()}, rounds)
    floor = min(median["product"], median["product (oneDNN)"])
    print(f"\n| {title} | s | times the product | extra MB |\n|---|---:|---:|---:|", flush=True)
    for name, seconds in median.items():
        memory = in_process("benchmarks.retrieval", "--memory", name, *given)
        print(f"| {name} | {seconds:.2f} | {seconds / floor:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
