"""A finished run as a folder for a model hub: weights, config, numbers, picture, and a model card that says it all."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
from omegaconf import OmegaConf

from dml.app.paths import takes_path
from dml.report.runs import Run, group_runs, read_runs
from dml.report.tables import mean_and_interval
from dml.use.export import compare, source_of
from dml.use.formats import five_lines, write_formats
from dml.use.missing import optional
from dml.use.trained import Trained
from dml.whole_file import whole_folder, write_whole
from dml.words import counted


class Publication(NamedTuple):
    """What a user says of it.

    Attributes:
        name: OWNER/NAME at the hub; None: nowhere yet.
        license: as the hub writes it, such as mit or cc-by-nc-4.0; None: the card asks for one.
    """

    name: str | None = None
    license: str | None = None


def publish(
    model: Trained, run: Path, others: Sequence[Path], out: Path, data: dict[str, Any], said: Publication
) -> None:
    """Write the folder.

    Args:
        model: of the run, on the CPU.
        run: its folder.
        others: folders of runs that differ in nothing but seed and fold, for means and intervals.
        out: the folder to write.
        data: keys of the run's data group that are others now, as root.
        said: by the user.

    Raises:
        ValueError: the run or another has no metrics.json, they differ in more, the test set cannot be read, or timm
            cannot load such a network; nothing is left then.
        OSError: `out` is there, or cannot be written.
    """
    runs = read_runs([run])
    if others:
        runs += [other for other in read_runs(others) if other.folder != runs[0].folder]
        groups = list(group_runs(runs).values())
        if len(groups) > 1:
            raise ValueError(f"--seeds: {groups[1][0].folder} is no run of {run} with another seed")
        runs = groups[0]
    source = source_of(model, data)
    with whole_folder(out) as folder:
        written = list(write_formats(model, ["safetensors"], folder, lambda: iter(())))
        report = compare(model, source, written)
        where = f"hf-hub:{said.name}" if said.name else "local-dir:."
        lines = five_lines(model, where)
        write_whole(folder / "use.py", ("\n".join(lines) + "\n").encode())
        config = OmegaConf.to_yaml(OmegaConf.create(without_places(model.config)))
        write_whole(folder / "dml_config.yaml", config.encode())
        content = {"metrics": runs[0].metrics, "row": without_places(runs[0].row)}
        write_whole(folder / "metrics.json", (json.dumps(content, indent=2) + "\n").encode())
        picture = run / "retrieval.png"
        if picture.is_file():
            write_whole(folder / "retrieval.png", picture.read_bytes())
        card = model_card(model, runs, lines, said, report, picture.is_file())
        write_whole(folder / "README.md", card.encode(errors="backslashreplace"))


def check_login(name: str) -> None:
    """Refuse what the hub would refuse, before anything is written.

    Raises:
        ValueError: huggingface_hub is not there, knows no login, or the name is none.
    """
    hub = optional("huggingface_hub", "hub", "--push")
    if hub.get_token() is None:
        raise ValueError("--push needs a login at the hub: `hf auth login`, or a token in HF_TOKEN")
    try:
        hub.utils.validate_repo_id(name)
    except ValueError as error:
        raise ValueError(f"--name {name} is not possible: {str(error).splitlines()[0]}") from error


def push(folder: Path, name: str, private: bool) -> str:
    """Bring a folder to the hub, by the login of huggingface_hub (`hf auth login`, or HF_TOKEN).

    Returns:
        Its address.

    Raises:
        ValueError: the hub cannot be reached, or refuses; the folder is there still.
    """
    hub = optional("huggingface_hub", "hub", "--push")
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(name, private=private, exist_ok=True)  # one that is there stays as public as it is
        return str(api.upload_folder(folder_path=folder, repo_id=name, commit_message="dml publish"))
    except (OSError, ValueError, hub.errors.HfHubHTTPError, _http_errors()) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"{folder} is written, but could not be brought to {name}: {reason}. The same command with --push goes on"
        ) from error


def _http_errors() -> type[Exception]:
    """The error of the client that huggingface_hub uses for its connections, whichever it is."""
    for name in ("httpx2", "httpx", "requests"):
        try:
            module = __import__(name)
        except ModuleNotFoundError:
            continue
        return getattr(module, "HTTPError", None) or module.RequestException
    return OSError


def without_places(node: Any, key: str = "") -> Any:
    """Plain data in which paths of this machine are only the names of their files."""
    if isinstance(node, dict):
        return {name: without_places(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [without_places(value, key) for value in node]
    if isinstance(node, str) and (takes_path(key) or node.startswith(("/", "~")) or key == "weights"):
        path, space, rest = node.partition(" (sha256")
        return os.path.basename(path.rstrip("/")) + space + rest
    return node


def model_card(
    model: Trained, runs: Sequence[Run], lines: Sequence[str], said: Publication, report: dict[str, Any], picture: bool
) -> str:
    """README.md of the folder, the hub's metadata at its head."""
    run, row = runs[0], without_places(runs[0].row)
    name = (said.name or f"{row['method']}-{row['backbone']}-{row['data']}").rpartition("/")[2]
    tested = {key.removeprefix("test/"): value for key, value in run.metrics.items() if key.startswith("test/")}
    head = {
        "license": said.license or "unknown",
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "metric-learning", "image-retrieval", "dml"],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-feature-extraction"},
                        "dataset": {"type": row["data"], "name": row["data"]},
                        "metrics": [{"type": key, "value": round(value, 4)} for key, value in tested.items()],
                    }
                ],
            }
        ],
    }
    cfg = timm.get_pretrained_cfg(row["backbone"], allow_unregistered=True)
    pretrained = f" (initial weights: {row['weights']})" if row.get("weights") else ""
    terms = f" (timm gives their licence as {cfg.license})" if cfg is not None and cfg.license else ""
    split = ", ".join(
        f"{key}={value}" for key, value in row["split"].items() if value is not None and key != "_target_"
    )
    parts = row.get("parts", {})
    sizes = [f"| {key} | {one['images']:,} | {one['classes']:,} |" for key, one in parts.items()]
    notes = [
        *(f"- {note}" for note in row.get("notes", [])),
        *([f"- **Leaked**: {row['leak'] or 'the test classes were watched in training'}"] if row.get("leaked") else []),
        *([] if row.get("class_disjoint") else ["- Training and test have classes in common."]),
    ]
    differ = report["files"][0]["ranks_that_differ"]
    seeds = ", ".join(str(one.row["seed"]) for one in runs)
    over = "this seed" if len(runs) == 1 else f"mean ± 95 % interval over {counted(len(runs), 'run')}"
    numbers = [
        _line(key, [one.metrics[f"test/{key}"] for one in runs if f"test/{key}" in one.metrics]) for key in tested
    ]
    versions = ", ".join(f"{key} {value}" for key, value in row.get("versions", {}).items())
    fill = "" if said.license else "\n\n**No licence has been chosen**: fill in `license` above."
    return "\n".join(
        [
            "---",
            OmegaConf.to_yaml(OmegaConf.create(head)).rstrip(),
            "---",
            "",
            f"# {name}",
            "",
            f"Image embeddings of {model.dim} dimensions, compared by Euclidean distance"
            f"{' at length 1' if model.normalized else ''}. Network: {row['backbone']}{pretrained}{terms}, trained "
            f"by dml with the loss `{row['method']}` on {row['data']}.{fill}",
            "",
            "## Use",
            "",
            "```python",
            *lines,
            "```",
            "",
            "These lines take images for opaque, upright and of 8 bits; dml itself reads others as well. On the test "
            f"set {differ:,} of {report['test']['ranks']:,} ranks are other ones than the run's own. "
            f"Fingerprint of the model: `{model.fingerprint}`.",
            "",
            "## Data and protocol",
            "",
            "| part | images | classes |",
            "|---|---|---|",
            *sizes,
            "",
            f"Split: {split or 'that of the data set'}. Protocol: {row['protocol'].get('name')}; checkpoint of step "
            f"{row.get('evaluated_step')} of {row.get('steps')}, chosen by "
            f"{row['protocol'].get('monitor') if row['protocol'].get('validate') else 'nothing: the last'}.",
            *notes,
            "",
            "## Results",
            "",
            f"On the test part; {over} (seeds {seeds}).",
            "",
            "| metric | value |",
            "|---|---|",
            *numbers,
            "",
            *(["![The worst and some typical queries, and what is nearest](retrieval.png)", ""] if picture else []),
            "## How it was made",
            "",
            "`metrics.json` holds all that decides the result, `dml_config.yaml` the whole config. "
            f"Versions: {versions}.",
            "",
        ]
    )  # fmt: skip


def _line(metric: str, values: Sequence[float]) -> str:
    mean, half = mean_and_interval([100 * value for value in values])
    return f"| {metric} | {mean:.2f} %{f' ± {half:.2f}' if len(values) > 1 else ''} |"
