"""Data sets of the Hugging Face hub, or local copies of them: images of one column, labels of another."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from dml.data.dataset import Source
from dml.data.listed import Row, source_of, unpacked


def load(
    *,
    name: str | None = None,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    box_column: str | None = None,
    group_column: str | None = None,
    train_fraction: Annotated[float, Interval(gt=0, lt=1)] | None = 0.5,
    unpacked_dir: str = "data/unpacked",
) -> Source:
    """Read a data set with the `datasets` package. Its images are written into `unpacked_dir` once.

    Its splits are the parts, by the names that data=table knows (train, val or validation, test, query, gallery).

    Args:
        name: on the hub, as owner/name; or a folder: of `save_to_disk`, or one that `load_dataset` reads.
        config: the configuration, where a data set has several.
        image_column: of the images; None: the only one of that kind.
        label_column: of the classes; None: the only ClassLabel, else the column `label`.
        box_column, group_column: as of data=table.
        train_fraction: share of the classes that train, if there is no test part; None: all of them test.
        unpacked_dir: where images go; one folder for each data set and split.

    Raises:
        ValueError: the package, the data set or a column is missing, or as data=table.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("data=hf needs the package datasets: pip install -c constraints.txt -e '.[hf]'") from error
    if name is None:
        raise ValueError("data=hf needs data.name=OWNER/NAME, or data.name=DIR of a local copy")
    try:
        stored = any((Path(name).expanduser() / file).is_file() for file in ("dataset_dict.json", "state.json"))
        if stored:
            found: Any = datasets.load_from_disk(str(Path(name).expanduser()))
        else:
            found = datasets.load_dataset(name, config)
    except Exception as error:  # of the hub, the network or a file, of many kinds
        raise ValueError(f"data.name={name} cannot be loaded: {type(error).__name__}: {str(error)[:300]}") from error
    if not isinstance(found, dict):
        found = {"train": found}
    rows: list[Row] = []
    for split, part in found.items():
        image = image_column or _only(part, datasets.Image, "image", name)
        label = label_column or _only(part, datasets.ClassLabel, "label", name)
        others = {"box": box_column, "group": group_column}
        for kind, column in {"image": image, "label": label, **others}.items():
            if column is not None and column not in part.column_names:
                columns = ", ".join(part.column_names)
                raise ValueError(f"data.{kind}_column={column} is no column of data.name={name}: it has {columns}")
        part = part.cast_column(image, datasets.Image(decode=False))
        named = getattr(part.features[label], "names", None)
        labels = [named[value] if named else value for value in part[label]]
        extra = [part[column] if column else [None] * len(part) for column in others.values()]
        key = hashlib.sha256(f"{name} {config} {split} {part._fingerprint} {image}".encode()).hexdigest()[:12]
        folder = Path(unpacked_dir).expanduser() / f"{Path(name).name}-{split}-{key}"
        images = unpacked((_content(each) for each in part[image]), folder, f"data.name={name}")
        for path, word, box, group in zip(images, labels, *extra, strict=True):
            rows.append(Row(path, word, split, box=box, group=group))
    return source_of(Path(name).name, rows, f"data.name={name}", train_fraction)


def _only(part: Any, kind: type, default: str, name: str) -> str:
    """The only column of a kind, or the one called `default`."""
    fitting = [column for column, feature in part.features.items() if isinstance(feature, kind)]
    if len(fitting) == 1:
        return fitting[0]
    if default in part.column_names:
        return default
    columns = ", ".join(part.column_names)
    raise ValueError(f"data.name={name} has {len(fitting)} columns for data.{default}_column: which? It has {columns}")


def _content(image: dict[str, Any]) -> bytes | None:
    """The file of an image as it is."""
    if image["bytes"] is not None:
        return image["bytes"]
    return Path(image["path"]).read_bytes() if image["path"] else None
