"""data=... on the command line of `dml`, as train.py reads it -> images, with what the data says of each."""

import hashlib
import io
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import dml.data
from dml.app.build import build_source
from dml.app.checkpoint import data_to_test
from dml.app.paths import readable
from dml.app.schema import problems_of
from dml.app.settings import Part, Splitting
from dml.app.told import describe, passed_over
from dml.data import table
from dml.data.dataset import ImageDataset, Records, Source
from dml.data.listed import unpacked
from dml.printable import printable
from dml.use.embed import share_of_environment
from dml.use.images import Images, find_images
from dml.use.trained import Trained
from dml.words import counted

TABLES = (".csv", ".tsv", ".parquet", ".pq")
_UNPACKED = "data/unpacked"  # where images of memory go; those of tables and of Hugging Face say it themselves


@dataclass
class _Data:
    data: Annotated[dict, Part(beside=Splitting)]


def named_images(given: Sequence[str], only: Collection[str] = ()) -> Callable[[Trained], Images]:
    """What finds the images that a command line names: as files, folders and lists, or by settings of the data.

    A table by itself means data=table data.file=TABLE. What can be told without the model is told before it is loaded.

    Args:
        given: files, folders and lists as for `find_images`; or settings data=NAME and data.KEY=VALUE.
        only: names of parts, of data; none: all of them.

    Raises:
        ValueError: one is not there, holds no image, or they do not go together; names it.
    """
    files = [one for one in given if not is_setting(one)]
    settings = settings_of([one for one in given if is_setting(one)])
    if tables := [one for one in files if Path(one).suffix.lower() in TABLES]:
        if len(files) > 1:
            raise ValueError(f"{tables[0]} is a table: embed it by itself, not together with other files")
        settings = {"data": "table", "data.file": files.pop(), **settings}
    if files and settings:
        raise ValueError(f"images are named by {next(iter(settings))}= and as files ({files[0]}): give one of them")
    if settings:
        return lambda model: images_of_data(model, settings, only)
    if only:
        raise ValueError("--part is for images that are named by data=...: files have no parts")
    images = Images.of(find_images(files))

    def found(model: Trained) -> Images:
        if model.transforms.crop_to_box:
            _say("the run cut images to their boxes; files have none, so they are embedded whole")
        return images

    return found


def _say(line: str) -> None:
    if share_of_environment().rank == 0:
        print(printable(line), file=sys.stderr)


def is_setting(argument: str) -> bool:
    """Whether an argument is data=NAME or data.KEY=VALUE, and no file."""
    return bool(re.match(r"data(\.\w+)*=", argument))


def settings_of(given: Sequence[str]) -> dict[str, Any]:
    """Settings as a command line has them -> key -> value, as Hydra reads it.

    Raises:
        ValueError: one is none of the data; names it.
    """
    found = {}
    for one in given:
        if not is_setting(one):
            raise ValueError(f"{one} is no setting of the data: data.root=DIR says where the images are")
        try:
            override = OverridesParser.create().parse_override(readable(one, sweep=False))
        except HydraException as error:
            raise ValueError(f"{one} cannot be read as a setting: {str(error).splitlines()[0]}") from error
        found[override.key_or_group] = override.value()
    return found


def images_of_data(model: Trained, settings: dict[str, Any], only: Collection[str] = ()) -> Images:
    """All images that the data names, each once, with `parts`, and `labels`, `groups` and `boxes` where it says them.

    Images that lie in a table, in shards or in memory are written as files once, as in training. They are cut to
    their boxes if the run was trained so, and the data has boxes.

    Args:
        model: of a run, whose own data is meant where no data=NAME is given.
        settings: data -> NAME, and data.KEY -> VALUE.
        only: names of parts; none: all of them.

    Raises:
        ValueError: a setting is none, or the data cannot be read, or has no such part; names the key.
    """
    config, own = _checked(model, settings)
    most = config.get("max_bad", 10) if config.get("on_error") == "skip" else None
    source, validation = _read(model, config, own)
    parts = {name: records for name, records in source.parts(validation).items() if len(records)}
    if missing := [name for name in only if name not in parts]:
        raise ValueError(f"--part {missing[0]} is not possible: {source.name} has {', '.join(parts)}")
    parts = {name: records for name, records in parts.items() if not only or name in only}
    for name, records in parts.items():
        _say(f"{name}: {describe(records)}")
    for line in ([passed_over(source)] if source.passed_over else []) + list(source.notes):
        _say(line)
    labelled = not (config["_target_"] == "dml.data.table.load" and config.get("label_column", "") is None)
    return _joined(model, source.name, parts, labelled)._replace(max_bad=most)


def _checked(model: Trained, settings: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    config, own = _config(model, settings)
    if said := [problem.said for problem in problems_of({"data": config}, _Data)]:
        raise ValueError("\n".join(said))
    return config, own


def _config(model: Trained, settings: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The data group, and whether it is the run's own, so that its parts are those of the run."""
    keys = {key.removeprefix("data."): value for key, value in settings.items() if key != "data"}
    name = settings.get("data", "as_trained")
    own = name == "as_trained" and "_target_" not in keys
    config = {**(model.config["data"] if own else {}), **keys}
    if name != "as_trained":
        if not re.fullmatch(r"\w+", str(name)) or find_spec(f"dml.data.{name}") is None:
            modules = [one.name for one in iter_modules(dml.data.__path__)]
            known = [one for one in modules if hasattr(import_module(f"dml.data.{one}"), "load")]
            raise ValueError(f"data={name} is no choice: there is as_trained, {', '.join(known)}")
        config = {"_target_": f"dml.data.{name}.load", **config}
    if config.get("_target_") == "dml.data.table.load" and "label_column" not in keys:
        file = Path(str(config.get("file"))).expanduser()
        if not own and file.is_file() and "label" not in table.columns_of(file):
            _say(f"{file} has no column label: images are embedded without labels")
            config["label_column"] = None
    tested = data_to_test(config, set(settings))
    return tested, own and tested == config


def source_of_settings(model: Trained, settings: dict[str, Any]) -> Source:
    """What settings of the data name, where all of it is tested unless it says what trains.

    Raises:
        ValueError: as `images_of_data` does.
    """
    config, own = _checked(model, settings)
    return _read(model, config, own)[0]


def _read(model: Trained, config: dict[str, Any], own: bool) -> tuple[Source, Records | None]:
    cfg = OmegaConf.create({"data": config})
    assert isinstance(cfg, DictConfig)
    source, validation = build_source(cfg, validate=own and bool(model.config["protocol"]["validate"]))
    return source, validation or source.validation


def _joined(model: Trained, name: str, parts: dict[str, Records], labelled: bool) -> Images:
    """Images of all parts, each once."""
    of_part: dict[Any, list[str]] = {}  # (image, box) -> where it is
    labels, groups, again = [], [], 0
    cut = model.transforms.crop_to_box
    for part, records in parts.items():
        files = replace(records, images=_as_files(name, records.images))
        boxed = cut and files.boxes is not None
        if cut and not boxed:
            _say(f"{part}: {name} has no boxes, so images are embedded whole (the run cut to them)")
        dataset = ImageDataset(files, model.transforms.test, crop_to_box=boxed)
        for i in range(len(files)):
            entry = dataset.to_decode(i)
            if entry in of_part:
                again += 1
                of_part[entry] += [part] if part not in of_part[entry] else []
                continue
            of_part[entry] = [part]
            labels.append(files.class_names[files.labels[i]])
            groups.append("" if files.groups is None else str(files.groups[i]))
    if again:
        _say(f"{counted(again, 'image')} named more than once: each is embedded once")
    columns = {"parts": np.array(["+".join(found) for found in of_part.values()])}
    if labelled:
        columns["labels"] = np.array(labels)
    if any(groups):
        columns["groups"] = np.array(groups)
    return Images(list(of_part), columns)


def _as_files(name: str, images: Sequence[Path] | np.ndarray) -> Sequence[Path]:
    """Images that are in memory as PNG files, written once."""
    if not isinstance(images, np.ndarray):
        return images

    def content(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()

    known = hashlib.sha256(f"{images.shape} {images.dtype}".encode() + np.ascontiguousarray(images).tobytes())
    return unpacked(map(content, images), Path(_UNPACKED) / f"{name}-{known.hexdigest()[:12]}", f"data={name}")
