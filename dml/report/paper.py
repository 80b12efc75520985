"""The paper's own numbers (paper/*.json), and what keeps a run from standing beside them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from dml.report.runs import Run


@cache
def read(name: str) -> dict[str, Any]:
    """The content of table1, table2 or figure3; each names its source."""
    return json.loads((Path(__file__).parent / "paper" / f"{name}.json").read_text())


def is_official(run: Run) -> bool:
    """Whether a run's data is the data set that it is called: a folder of one's own may have the same name."""
    official = f"dml.data.{run.row['data']}.load"
    return run.settings.get("split._target_", official) == official  # rows of before do not say


def published(run: Run, metric: str) -> float | None:
    """Table I's value [%] for the run's method, data set and dimension; None if it has none for these settings."""
    table = read("table1")
    method = table["methods"].get(run.row["method"])
    recall = table["recall"].get(run.row["data"], {})
    values = recall.get(run.row["method"], {}).get(str(run.row["dimension"]))
    if (
        values is None
        or not is_official(run)
        or any(run.settings.get(key) != value for key, value in method["settings"].items())
    ):
        return None
    named = {f"test/recall@{k}": value for k, value in zip(recall["ks"], values, strict=True)}
    return named.get(metric)


def marks(run: Run) -> dict[str, str]:
    """Symbol -> what makes the run's numbers not comparable; ten crops and boxes as the paper marks them."""
    row, settings = run.row, run.settings
    found = {}
    if row.get("leaked"):
        found["†"] = row.get("leak") or "the test classes were watched during training"
    if settings.get("transform.ten_crop"):
        found["⊞"] = "embeddings averaged over ten crops"
    if settings.get("transform.crop_to_box"):
        found["□"] = "images cropped to their bounding boxes"
    table = read("table1")
    if row["data"] in table["recall"] and is_official(run):
        if row.get("backbone") != table["settings"]["backbone"]:
            found["‡"] = f"another backbone than the paper's {table['settings']['backbone']}"
        if row.get("weights") == "random":
            found["¶"] = "trained from scratch, not from ImageNet weights"
        if settings.get("protocol.name") != table["settings"]["protocol.name"]:
            found["§"] = "another protocol: fewer training classes, the others chose the checkpoint"
    return found
