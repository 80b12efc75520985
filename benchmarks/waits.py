"""How often the host waits for a GPU in a step of each loss, counted on a device that is not there.

`python -m benchmarks.waits [--sizes 96 600 4096] [--only NAME ...]`. Forward and backward pass of each loss that the
tests know, 6 embeddings of 32 dimensions in each class, at the second step (a memory has something to compare with).
At 4,096 some minutes, most of them for clustering, whose search runs on the host.
"""

import argparse

from dml.testing.pretended import pretended_device
from tests.losses import Batch
from tests.losses.table import EVERY, build


def waits(name: str, size: int) -> int:
    """The number of times in a step of `size` embeddings."""
    batch = Batch((6,) * (size // 6), 32)
    embeddings, labels = batch.make(0)
    loss = build(name, batch.dim, len(batch.sizes))
    with pretended_device() as gpu:
        loss, x, labels = loss.to(gpu.device), embeddings.float().to(gpu.device), labels.to(gpu.device)
        for _ in range(2):
            gpu.waits.clear()
            loss(x.requires_grad_(), labels.clone()).backward()
        return len(gpu.waits)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 600, 4096])
    parser.add_argument("--only", nargs="+", default=EVERY, metavar="NAME", choices=EVERY)
    options = parser.parse_args()
    print("| loss | " + " | ".join(f"m = {size}" for size in options.sizes) + " |")
    print("|---|" + "---:|" * len(options.sizes))
    for name in options.only:
        print(f"| {name} | " + " | ".join(str(waits(name, size)) for size in options.sizes) + " |", flush=True)


if __name__ == "__main__":
    main()
