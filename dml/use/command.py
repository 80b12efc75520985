"""The command `dml`: embed, index, search, export, publish. A mistake is one line on standard error."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from dml.printable import printable, tolerant_output

_IMAGES = "files, folders, lists (.txt, or - for stdin: a path a line); a table; or data=NAME data.KEY=VALUE"
_PARTS = ("train", "validation", "test", "gallery")
_PART = f"of data or a table: {', '.join(_PARTS)}; all by default, can be given again"
_TRUST = "also make parts of other packages that the checkpoint names; they can run any code"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not possible: it must be a whole number of at least 1")
    return int(text)


def _whole(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _check_there(names: Iterable[str | Path]) -> None:
    """Refuse a file or folder that is not there, before torch is imported, which takes long; settings have a =."""
    for name in map(str, names):
        if name != "-" and "=" not in name and not _path(name).exists():
            raise FileNotFoundError(errno.ENOENT, "does not exist", name)


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; the GPU by default, if there is one")
    parser.add_argument("--trust", action="store_true", help=_TRUST)


def _add_embed(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    parser.add_argument("run", metavar="RUN", type=_path, help="folder of a finished run, or a checkpoint")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help=_IMAGES)
    parser.add_argument("--out", type=_path, default=Path("embeddings.npz"), help="%(default)s; or NAME.parquet")
    parser.add_argument("--part", metavar="PART", action="append", choices=_PARTS, default=[], help=_PART)
    parser.add_argument("--batch-size", type=_positive, default=64, help="%(default)s images")
    parser.add_argument("--workers", type=_whole, help="processes that decode; the cores by default, 8 at most")
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out what cannot be decoded, and list it in NAME.bad_images.txt (an error by default)",
    )
    parser.add_argument("--max-bad", type=_whole, default=10, help="more of them are an error; %(default)s")
    _model_options(parser)

    def run(given: argparse.Namespace) -> None:
        _check_there(given.images)
        from dml.use.data import named_images
        from dml.use.embed import embed, share_of_environment
        from dml.use.embeddings import ENDINGS
        from dml.use.trained import load

        if given.out.suffix not in ENDINGS:
            raise ValueError(f"--out {given.out} is not possible: its name must end in {' or '.join(ENDINGS)}")
        find = named_images(given.images, given.part)
        share = share_of_environment()
        model = load(given.run, trust=given.trust).to(_device(given.device, share.local_rank))
        images = find(model)
        embed(
            model,
            images,
            given.out,
            batch_size=given.batch_size,
            workers=given.workers,
            skip=given.skip_broken or images.max_bad is not None,
            max_bad=given.max_bad if given.skip_broken or images.max_bad is None else images.max_bad,
            share=share,
        )

    return run


def _add_index(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    parser.add_argument("embeddings", metavar="EMBEDDINGS", type=_path, help=".npz or .parquet of `dml embed`")
    parser.add_argument("--out", type=_path, help="folder of the index; NAME.index by default")
    parser.add_argument("--store", choices=("faiss", "qdrant"), default="faiss", help="%(default)s by default")
    faiss = parser.add_argument_group("faiss")
    faiss.add_argument("--factory", help="FAISS's string; Flat by default, which is exact; IVF1024,PQ32 or HNSW32")
    faiss.add_argument("--parameters", help="of the search, as nprobe=16 or efSearch=64")
    qdrant = parser.add_argument_group("qdrant")
    qdrant.add_argument("--url", help="of a server or cluster (key: QDRANT_API_KEY); the index's folder by default")
    qdrant.add_argument("--collection", help="its name there; that of the file by default")

    def run(given: argparse.Namespace) -> None:
        settings = {"faiss": ("factory", "parameters"), "qdrant": ("url", "collection")}
        for store, keys in settings.items():
            for key in keys:
                if store != given.store and getattr(given, key) is not None:
                    raise ValueError(f"--{key} is for --store {store}, and the store is {given.store}")
        from dml.use.embeddings import Embeddings
        from dml.use.index import build_index, quality_said

        embeddings = Embeddings(given.embeddings)
        if given.store == "qdrant":
            given.collection = given.collection or given.embeddings.stem
        chosen = {key: value for key in settings[given.store] if (value := getattr(given, key)) is not None}
        out = given.out or given.embeddings.with_suffix(".index")
        quality = build_index(embeddings, out, given.store, **chosen)
        print(quality_said(quality))
        print(f"{embeddings.about.images:,} embeddings of {embeddings.about.dimension} dimensions: {out}")

    return run


def _add_search(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    parser.add_argument("index", metavar="INDEX", type=_path, help="folder of `dml index`")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=f"queries: {_IMAGES}")
    parser.add_argument("-k", type=_positive, default=10, help="nearest images of each; %(default)s")
    parser.add_argument("--model", metavar="RUN", type=_path, help="the run, if it is not where it was any more")
    parser.add_argument("--out", type=_path, default=Path("search.png"), help="the picture; %(default)s")
    _model_options(parser)

    def run(given: argparse.Namespace) -> None:
        _check_there([given.index, *given.images])
        from dml.use.data import named_images
        from dml.use.index import Index
        from dml.use.search import search
        from dml.use.trained import load

        index = Index(given.index)
        find = named_images(given.images)
        path = given.model or Path(index.about.checkpoint)
        if not path.exists():
            raise ValueError(f"the model of {given.index} is not at {path} any more: --model RUN says where it is")
        model = load(path, trust=given.trust).to(_device(given.device))
        search(index, model, find(model), given.k, given.out)

    return run


def _add_export(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    parser.add_argument("run", metavar="RUN", type=_path, help="folder of a finished run, or a checkpoint")
    parser.add_argument(
        "data", metavar="data.KEY=VALUE", nargs="*", help="where the run's images are now: data.root=DIR; or others"
    )
    parser.add_argument("--out", type=_path, default=Path("export"), help="folder; %(default)s")
    parser.add_argument("--sample", metavar="N", type=_positive, help="compare by about N test images; all by default")
    parser.add_argument("--only", help="of safetensors,torch,onnx,float16,int8; all by default")
    parser.add_argument("--trust", action="store_true", help=_TRUST)

    def run(given: argparse.Namespace) -> None:
        from dml.use.data import settings_of
        from dml.use.export import export, table
        from dml.use.formats import FORMATS
        from dml.use.trained import load

        formats = FORMATS if given.only is None else tuple(given.only.split(","))
        if unknown := [name for name in formats if name not in FORMATS]:
            raise ValueError(f"--only {unknown[0]} is not possible: there is {', '.join(FORMATS)}")
        data = settings_of(given.data)
        model = load(given.run, trust=given.trust)
        print(table(export(model, formats, given.out, data, given.sample)))
        print(f"Files: {given.out}")
        if "safetensors" in formats:
            print(f"\nWith plain timm ({given.out}/use.py):\n\n{(given.out / 'use.py').read_text()}")

    return run


def _add_publish(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    parser.add_argument("run", metavar="RUN", type=_path, help="folder of a finished run")
    parser.add_argument("data", metavar="data.KEY=VALUE", nargs="*", help="where its images are: data.root=DIR")
    parser.add_argument("--out", type=_path, default=Path("published"), help="folder; %(default)s")
    parser.add_argument("--seeds", metavar="DIR", nargs="+", type=_path, default=[], help="the same with other seeds")
    parser.add_argument("--name", metavar="OWNER/NAME", help="at the hub")
    parser.add_argument("--license", help="of the weights, as mit or cc-by-nc-4.0; the card asks for one by default")
    parser.add_argument("--push", action="store_true", help="bring it to the hub, if it is there already, as it is")
    parser.add_argument("--private", action="store_true", help="with --push: for its owner only")
    parser.add_argument("--trust", action="store_true", help=_TRUST)

    def run(given: argparse.Namespace) -> None:
        if given.push and not given.name:
            raise ValueError("--push needs --name OWNER/NAME")
        from dml.use.data import settings_of
        from dml.use.publish import Publication, check_login, publish, push
        from dml.use.trained import load

        if given.push:
            check_login(given.name)
        if not (given.push and (given.out / "README.md").is_file()):
            if not (given.run / "metrics.json").is_file():
                raise ValueError(f"{given.run} is no folder of a finished run (it has no metrics.json)")
            data = settings_of(given.data)
            model = load(given.run, trust=given.trust)
            publish(model, given.run, given.seeds, given.out, data, Publication(given.name, given.license))
            print(f"Written: {given.out}; README.md is the model card, and retrieval.png shows images")
        if given.push:
            print(f"At the hub: {push(given.out, given.name, given.private)}")

    return run


_COMMANDS = {
    "embed": ("embed images into a file of embeddings", _add_embed),
    "index": ("put embeddings into an index", _add_index),
    "export": ("write the model as files that need no dml, and compare them with it", _add_export),
    "publish": ("write a folder for a model hub, with a model card", _add_publish),
    "search": ("find the nearest images of an index", _add_search),
}


def _device(given: str | None, local_rank: int = 0) -> str:
    import torch

    if given is None:
        count = torch.cuda.device_count()
        return f"cuda:{local_rank % count}" if count else "cpu"
    try:
        torch.zeros(1, device=given)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {given} is not possible: {str(error).splitlines()[0]}") from error
    return given


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what a user can mend ends it with one line."""
    tolerant_output()
    parser = argparse.ArgumentParser(prog="dml", description="Use what was trained (docs/use.md).")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (doing, add) in _COMMANDS.items():
        command = commands.add_parser(name, help=doing, description=f"{doing[0].upper()}{doing[1:]}.")
        command.set_defaults(run_command=add(command))
    given, more = parser.parse_known_args(arguments)
    # What stands behind an option, which argparse would not add to the list before it.
    several = getattr(given, "images", getattr(given, "data", None))
    if more and (several is None or any(one.startswith("-") and one != "-" for one in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if several is not None:
        several += more
    try:
        given.run_command(given)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        said = _said(error)
        if said is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit("\n".join(map(printable, said.splitlines())))


def _said(error: Exception) -> str | None:
    """What the user is told; None of an error that no user can mend."""
    if isinstance(error, OSError) and error.errno is not None:
        kept = "; what was written before is whole: the same command goes on" if error.errno in _FULL else ""
        return f"{error.filename or 'a file'}: {error.strerror}{kept}"
    from dml.app.errors import message_of

    return message_of(error)
