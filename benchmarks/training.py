"""Training steps: ours as a user runs them, and plain PyTorch loops beside them, with pytorch-metric-learning and bare.

`python -m benchmarks.training [--networks googlenet resnet50] [--precisions 32 bf16] [--compile] [--device cpu|cuda]`.
Random weights, 224 pixels (`--size`), batches of 8 classes (`--classes`) x 4 uint8 images that are in memory already,
embeddings of 512 dimensions, SGD. Images per second are medians over rounds in which all cases take turns, after one to
warm up. `--processor-time` counts seconds of the processor instead: with one thread they are steady on a busy machine.

- ours: MetricLearner in the Trainer that the config describes, with progress bar, CSV logger and checkpoints;
- ours without `engine.reuse_memory` (on a CPU): freed memory goes back to the system at each step, as in plain loops;
- pml: the loop of pytorch-metric-learning's documentation, in PyTorch's own memory layout and in channels last;
- bare: forward, backward and step on one batch that is on the device and normalised already, without a metric loss.
"""

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.measure import finish, machine
from dml.app.trainer import build_loggers, build_trainer
from dml.engine.module import MetricLearner
from dml.engine.stop import StopSignals
from dml.losses.nra import NRALoss
from dml.losses.triplet import TripletLoss
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder

ROOT = Path(__file__).parents[1]
PER_CLASS, DIM = 4, 512
Case = Callable[[int], float]  # number of steps -> seconds for them
Batch = tuple[Tensor, Tensor, Tensor]


def batches(count: int, options: argparse.Namespace) -> list[Batch]:
    """Different images and labels in each, in memory that the device can copy from without waiting."""
    side, size, generator = options.size, options.classes * PER_CLASS, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 100, (count, options.classes), generator=generator).repeat_interleave(PER_CLASS, dim=1)
    if options.device == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    return [(x, y, torch.arange(size)) for x, y in zip(images, labels, strict=True)]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


class InMemory(pl.LightningDataModule):
    """Batches that are there already, in place of dml's own loaders."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        super().__init__()
        self.batches = [batches[step % len(batches)] for step in range(steps)]
        self.parts: dict[str, Any] = {}  # no data sets, so no unreadable images to tell of

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    def start_epoch(self, epoch: int) -> None:
        pass


class Clock(pl.Callback):
    """Seconds from the end of the first step to the end of the last."""

    def __init__(self, steps: int, clock: Callable[[], float]) -> None:
        self.steps, self.clock, self.start, self.seconds = steps, clock, 0.0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in (1, self.steps):
            finish(str(trainer.strategy.root_device))
            self.start, self.seconds = self.clock(), self.clock() - self.start


def ours(network: str, loss: nn.Module, precision: str, options: argparse.Namespace, reuse_memory: bool = True) -> Case:
    """Lightning with everything that a run of train.py has but the evaluation."""
    embedder = Embedder(backbone=create_backbone(name=network), dim=DIM)
    learner = MetricLearner(
        embedder=embedder,
        loss=loss,
        evaluator=lambda *_, **__: {},
        optimizer=sgd,
        scheduler=None,
        config={"seed": 0},
        compile=options.compile,
        reuse_memory=reuse_memory,
    )
    data = batches(4, options)

    def run(steps: int) -> float:
        steps += 1
        overrides = [
            f"trainer.max_steps={steps}",
            f"trainer.accelerator={options.device}",
            "protocol=paper",
            "+trainer.limit_val_batches=0",
        ]
        overrides += ["logger=csv", f"trainer.precision={'32-true' if precision == '32' else 'bf16-mixed'}"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", overrides)
        clock = Clock(steps, options.clock)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), StopSignals() as stop:
            trainer = build_trainer(cfg, Path(folder), stop)
            trainer.loggers = build_loggers(cfg, Path(folder), default={})
            trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
            trainer.fit(learner, datamodule=InMemory(data, steps))
        return clock.seconds

    return run


class Plain(nn.Module):
    """The same network as one writes it without dml."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.backbone = create_backbone(name=network)
        self.head = nn.Linear(self.backbone.head_hidden_size, DIM)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def pml(network: str, channels_last: bool, precision: str, options: argparse.Namespace) -> Case:
    """The loop of https://kevinmusgrave.github.io/pytorch-metric-learning, with hard triplets."""
    from pytorch_metric_learning import losses, miners

    model, miner, loss_function = Plain(network), miners.BatchHardMiner(), losses.TripletMarginLoss(margin=1.0)
    model.to(options.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    if options.compile and channels_last:
        model.compile()
    optimizer, data = sgd(model.parameters()), batches(4, options)

    def run(steps: int) -> float:
        finish(options.device)
        start = options.clock()
        for step in range(steps):
            images, labels, _ = data[step % len(data)]
            images = images.to(options.device, non_blocking=True).float().div_(255).sub_(0.5).div_(0.5)
            labels = labels.to(options.device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16"):
                embeddings = model(images.contiguous(memory_format=layout)).float()
            loss = loss_function(embeddings, labels, miner(embeddings, labels))
            loss.backward()
            optimizer.step()
        finish(options.device)
        return options.clock() - start

    return run


def bare(network: str, precision: str, options: argparse.Namespace) -> Case:
    """What no loop around this network can beat."""
    model = Plain(network).to(options.device).to(memory_format=torch.channels_last)
    if options.compile:
        model.compile()
    optimizer = sgd(model.parameters())
    x = torch.randn(options.classes * PER_CLASS, 3, options.size, options.size, device=options.device)
    x = x.to(memory_format=torch.channels_last)

    def run(steps: int) -> float:
        finish(options.device)
        start = options.clock()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16"):
                embeddings = model(x)
            embeddings.float().square().mean().backward()
            optimizer.step()
        finish(options.device)
        return options.clock() - start

    return run


def cases(network: str, precision: str, options: argparse.Namespace) -> dict[str, Case]:
    found = {
        "ours, nra": ours(network, NRALoss(), precision, options),
        "ours, hard triplet": ours(network, TripletLoss(mining="hard"), precision, options),
        "bare, channels last": bare(network, precision, options),
    }
    if options.device == "cpu":
        found["ours, nra, engine.reuse_memory=false"] = ours(network, NRALoss(), precision, options, reuse_memory=False)
    try:
        found["hard triplet (pml)"] = pml(network, False, precision, options)
        found["hard triplet (pml), channels last"] = pml(network, True, precision, options)
    except ImportError:
        print("pytorch-metric-learning is not installed: pip install -e '.[bench]'", file=sys.stderr)
    return {f"{name}, bf16" if precision == "bf16" else name: case for name, case in found.items()}


def table(network: str, options: argparse.Namespace) -> None:
    """Time all cases of one network by turns."""
    chosen: dict[str, Case] = {}
    for precision in options.precisions:
        chosen |= cases(network, precision, options)
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(options.rounds + 1):
        for name, case in chosen.items():
            steps = options.steps if turn else 1
            seconds = case(steps)
            if turn:
                rates[name].append(steps * options.classes * PER_CLASS / seconds)
    median = {name: statistics.median(found) for name, found in rates.items()}
    floor = next(iter(median.values()))
    clock = "images per second of the processor" if options.processor_time else "images/s"
    print(f"\n| {network}, batch {options.classes * PER_CLASS} at {options.size} | {clock} | ours, nra = 1 |")
    print("|---|---:|---:|")
    for name, rate in median.items():
        print(f"| {name} | {rate:.1f} | {rate / floor:.2f} |", flush=True)


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["googlenet", "resnet50"])
    parser.add_argument("--precisions", nargs="+", choices=["32", "bf16"], default=["32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="where it may pay; not on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--classes", type=int, default=8, help="in a batch, 4 images of each")
    parser.add_argument("--processor-time", action="store_true", help="use it with OMP_NUM_THREADS=1, on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="in a turn; 50 or so on a GPU")
    options = parser.parse_args()
    options.clock = time.process_time if options.processor_time else time.perf_counter
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(machine(options.device))
    for network in options.networks:
        table(network, options)


if __name__ == "__main__":
    main()
