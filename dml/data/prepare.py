"""Check a benchmark, download it where that needs no login: python -m dml.data.prepare NAME root=DIR."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets import MNIST, Omniglot

from dml.data import cars196, cub200, inshop, mnist, omniglot, sop
from dml.data.dataset import Source
from dml.data.download import OpenUrl, fetch, open_https, unpack
from dml.printable import tolerant_output
from dml.words import counted


@dataclass(frozen=True)
class Archive:
    """A file of an official source: its url and md5, where it is kept and what it unpacks to, below the root."""

    url: str
    md5: str
    file: str
    unpacks_to: str


@dataclass(frozen=True)
class Benchmark:
    """How a data set is checked (its own load), and what it is downloaded from; no archives: by hand."""

    load: Callable[..., Source]
    archives: tuple[Archive, ...] = ()


def _load_mnist(*, root: str) -> Source:
    """All of MNIST, which must be there: mnist.load alone would download it."""
    missing = [archive.unpacks_to for archive in _MNIST if not (Path(root) / archive.unpacks_to).is_file()]
    if missing:
        raise ValueError(f"data.root={root} has no {missing[0]}")
    return mnist.load(root=root, test_images=None)


def _load_omniglot(*, root: str) -> Source:
    return omniglot.load(root=root, download=False)


_CUB = Archive(
    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    md5="97eceeb196236b17998738112f37df78",
    file="CUB_200_2011.tgz",
    unpacks_to="CUB_200_2011",
)
_MIRROR = next(mirror for mirror in MNIST.mirrors if mirror.startswith("https://"))
_MNIST = tuple(
    Archive(_MIRROR + name, md5, f"MNIST/raw/{name}", f"MNIST/raw/{name.removesuffix('.gz')}")
    for name, md5 in MNIST.resources
)
_OMNIGLOT = tuple(
    Archive(f"{Omniglot.download_url_prefix}/{name}.zip", md5, f"omniglot-py/{name}.zip", f"omniglot-py/{name}")
    for name, md5 in Omniglot.zips_md5.items()
)
BENCHMARKS = {
    "cub200": Benchmark(cub200.load, (_CUB,)),
    "cars196": Benchmark(cars196.load),
    "sop": Benchmark(sop.load),
    "inshop": Benchmark(inshop.load),
    "mnist": Benchmark(_load_mnist, _MNIST),
    "omniglot": Benchmark(_load_omniglot, _OMNIGLOT),
}


def prepare(name: str, root: str, open_url: OpenUrl = open_https) -> Source:
    """Check the data set in `root`; if it is not there, download and unpack it, and check again.

    Args:
        name: of BENCHMARKS.
        root: the data.root of training.
        open_url: opens a request; tests give one that allows http.

    Raises:
        ValueError: the data set is wrong or missing and cannot be downloaded; says what to do.
    """
    benchmark, folder = BENCHMARKS[name], Path(root).expanduser()
    try:
        return benchmark.load(root=str(folder))
    except ValueError as error:
        wanted = [archive for archive in benchmark.archives if not (folder / archive.unpacks_to).exists()]
        if not benchmark.archives:
            raise
        if not wanted:
            there = ", ".join(archive.unpacks_to for archive in benchmark.archives)
            raise ValueError(f"{error} (or remove {there} in {root} and run this again)") from error
        print(error, file=sys.stderr)
    for archive in wanted:
        fetch(archive.url, archive.md5, folder / archive.file, open_url)
        print(f"unpacking {archive.file}")
        unpack(folder / archive.file, folder / archive.unpacks_to)
    return benchmark.load(root=str(folder))


def main(arguments: Sequence[str], open_url: OpenUrl = open_https) -> int:
    """The command; returns its exit status: 0 verified, 1 not, 2 not understood."""
    tolerant_output()
    understood = len(arguments) == 2 and arguments[0] in BENCHMARKS and arguments[1].startswith("root=")
    if not understood or arguments[1] == "root=":
        print(f"usage: python -m dml.data.prepare {'|'.join(BENCHMARKS)} root=DIR", file=sys.stderr)
        return 2
    name, root = arguments[0], arguments[1].removeprefix("root=")
    try:
        source = prepare(name, root, open_url)
    except (ValueError, OSError) as error:
        print(f"{name} is not ready: {error}", file=sys.stderr)
        return 1
    parts = {"training": source.train, "test": source.test, "gallery": source.gallery}
    counts = [counted(len(part), f"{key} image") for key, part in parts.items() if part is not None]
    classes = f"{source.train.num_classes:,} training and {source.test.num_classes:,} test classes"
    print(f"{name} is ready in {root}: {', '.join(counts)}; {classes}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
