"""Images per second into the training loop: decoded each time, from a cache, and as torchvision's users do it.

`python -m benchmarks.input [--images 3840] [--batch 32] [--device cpu|cuda]`. JPEGs of 500 x 375 pixels with the
spectrum of photos, 95 KB each, are written into a temporary folder and read in batches of 32 with the paper's
transform: 256 pixels at the larger side, a random crop of 224, mirrored. torchvision's case is ImageFolder with Resize,
RandomCrop, flip, ToTensor and Normalize (ours normalises on the device). All cases take turns; numbers are medians over
rounds, after one to warm up. The files are in the system's memory: a slow disk would add to all cases.

Waiting is the share of a training step that is spent asking the loader for its batch: of GoogLeNet with NRA on the
device, and of a step as where a GPU is at work (5,120 images/s: a guess at one of today): this process is busy for half
of it with small operations, as if it told the GPU what to do, and sleeps for the rest. Cached images come by a thread
there, as in training; the others by processes.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

import dml.models.backbones  # noqa: F401  (registers googlenet)
from benchmarks.measure import by_turns, finish, machine
from dml.data.cache import cache_images
from dml.data.dataset import ImageDataset
from dml.data.folder import read_tree
from dml.data.transforms import Transforms
from dml.engine.datamodule import ReadingAhead, cores, stack
from dml.losses.nra import NRALoss
from dml.models.embedder import Embedder

ELSEWHERE = 5120  # images/s of a GPU
STEPS = 25  # of which waiting is measured, where there are as many


def write_photos(root: Path, images: int) -> None:
    """JPEGs of noise with a 1/f spectrum, in 8 classes; 32 of them are made, the others are their copies."""
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None])
    frequency[0, 0] = np.inf
    for i in range(images):
        path = root / f"class{i % 8}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i >= 32:
            shutil.copyfile(root / f"class{i % 8}" / f"{i % 32}.jpg", path)
            continue
        rng = np.random.default_rng(i)
        gray = rng.normal(size=(375, 500, 1))
        noise = gray + 0.3 * rng.normal(size=(375, 500, 3))
        x = np.fft.irfft2(np.fft.rfft2(noise, axes=(0, 1)) / frequency[..., None], s=(375, 500), axes=(0, 1))
        Image.fromarray(np.clip(x / x.std() * 55 + 120, 0, 255).astype(np.uint8)).save(path, quality=85)


def datasets(root: Path, cache: Path, workers: int) -> tuple[dict[str, Any], float]:
    """The cases' data sets, and at how many images a second the cache was built."""
    transforms, records = Transforms(size=224, resize=256), read_tree(root, "data.root")
    ours = [ImageDataset(records, transforms.train, decode=transforms.decode) for _ in range(2)]
    start = time.perf_counter()
    cache_images(ours[1:], transforms.decode, place="disk", folder=str(cache), name="bench", workers=workers,
                 progress=False)  # fmt: skip
    rate = len(records) / (time.perf_counter() - start)
    steps = [tv.Resize(256), tv.RandomCrop(224), tv.RandomHorizontalFlip(), tv.ToTensor(), tv.Normalize([0.5], [0.5])]
    theirs = ImageFolder(str(root), transform=tv.Compose(steps))
    return {"cached": ours[1], "uncached": ours[0], "torchvision": theirs}, rate


def loader(name: str, dataset: Any, batch: int, workers: int | None) -> DataLoader:
    """Shuffled batches, by so many processes; None: by a thread that reads ahead."""
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    batches: list[Any] = [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]
    given: dict[str, Any] = {}
    if name != "torchvision":
        batches, given = [[(i, i) for i in some] for some in batches], {"collate_fn": stack}
    pinned = torch.cuda.is_available()
    if workers is None:
        return ReadingAhead(dataset, batch_sampler=batches, pin_memory=pinned, **given)
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0, pin_memory=pinned, **given
    )


def rate(batches: Iterable[Any]) -> float:
    """Images a second of one pass."""
    start, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch[0])
    return images / (time.perf_counter() - start)


def waiting(batches: Iterable[Any], step: Callable[[Any], None]) -> tuple[float, float]:
    """(share of the time waited for batches, ms a step) of some steps, the first left out."""
    iterator, waited = islice(batches, STEPS), 0.0
    step(next(iterator))
    first = last = time.perf_counter()
    steps = 0
    for batch in iterator:
        waited += time.perf_counter() - last
        step(batch)
        steps, last = steps + 1, time.perf_counter()
    return waited / (last - first), 1000 * (last - first) / steps


def googlenet_step(device: str) -> Callable[[Any], None]:
    """A training step with the paper's network, loss and optimiser."""
    backbone = timm.create_model("googlenet", pretrained=False, num_classes=0)
    model, loss = Embedder(backbone=backbone, dim=512).to(device).train(), NRALoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(batch: Any) -> None:
        images, labels = (part.to(device, non_blocking=True) for part in batch[:2])
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
        finish(device)

    return step


def step_elsewhere(_: Any) -> None:
    """What a step of 128 images asks of this process where a GPU computes it."""
    seconds, x = 128 / ELSEWHERE, torch.zeros(1)
    end = time.perf_counter() + seconds / 2
    while time.perf_counter() < end:
        x.add_(1)
    time.sleep(seconds / 2)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3840)
    parser.add_argument("--batch", type=int, help="of the step; 32 on a CPU, 128 on a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    batch = options.batch or (32 if options.device == "cpu" else 128)
    threads, most = torch.get_num_threads(), min(8, cores())
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos", options.images)
        sets, built = datasets(Path(folder) / "photos", Path(folder) / "cache", most)
        torch.set_num_threads(1)
        rates = {}
        for workers in (0, most):
            loaders = {name: loader(name, dataset, 32, workers) for name, dataset in sets.items()}
            rates[workers] = by_turns({name: partial(rate, x) for name, x in loaders.items()}, options.rounds)
            del loaders
        torch.set_num_threads(threads)
        step, default = googlenet_step(options.device), {"cached": None}
        shares = {}
        for what, size, act, steps in (
            ("googlenet", batch, step, 8),
            ("elsewhere", 128, step_elsewhere, None),
        ):
            loaders = {name: loader(name, dataset, size, default.get(name, most)) for name, dataset in sets.items()}
            shares[what] = by_turns(
                {
                    name: partial(lambda x, act, n: waiting(islice(x, n), act), x, act, steps)
                    for name, x in loaders.items()
                },
                options.rounds,
            )
            del loaders
    built_by = f"the cache was built at {built:.0f} images/s by {most} processes"
    print(f"{machine(options.device)}, {cores()} cores; {built_by}\n")
    print(f"| images/s | one core | times uncached | {most} workers | times uncached |\n|---|---:|---:|---:|---:|")
    for name in sets:
        columns = [f"{rates[w][name]:.0f} | {rates[w][name] / rates[w]['uncached']:.1f}" for w in (0, most)]
        print(f"| {name} | {' | '.join(columns)} |")
    print(f"\n| a training step | GoogLeNet, batch {batch}, {options.device}: ms | waiting | elsewhere, batch 128: ms "
          "| waiting |\n|---|---:|---:|---:|---:|")  # fmt: skip
    for name in sets:
        columns = [f"{shares[w][name][1]:.0f} | {shares[w][name][0]:.1%}" for w in ("googlenet", "elsewhere")]
        print(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
