"""Weight files of others: recognised, unwrapped, fitted to a network, and loaded whole or not at all.

A file may hold its weights under a key (`state_dict`, `model`, `teacher`, ...), its names may carry a prefix
(`module.`, `backbone.`, `module.encoder_q.`), and it may hold a classifier or a projector that a backbone has no use
for. What was taken and what was left out is logged; anything else that does not fit is an error.
"""

import argparse
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dml.models.caffemodel import read_caffemodel
from dml.models.lora import merged_state

State = Mapping[str, Tensor]
Filter = Callable[..., dict[str, Tensor]]

# Where a file with several sets of weights has those that are used: averaged ones first, as timm does.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model",
    "teacher",
    "model_state_dict",
    "net",
    "student",
)
# Networks of a pair that are not the one to use: DINO takes its teacher, MoCo its query encoder, BYOL the online one.
_SECOND = {"student", "encoder_k", "key_encoder", "momentum_encoder", "target_encoder", "encoder_m"}
# What stands behind the features under these names, unless the network itself has a part that is called so.
_HEADS = {
    *("fc", "head", "heads", "head_dist", "classifier", "last_linear", "aux1", "aux2", "aux_head"),
    *("projector", "projection", "projection_head", "proj_head", "predictor", "prototypes", "mlp_head"),
}


def fingerprint(path: str | Path) -> str:
    """The first 12 digits of the sha256 of a file's content."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def check_file(path: str | Path, key: str) -> None:
    """That there is a file, and that its first bytes are not those of another kind.

    Args:
        path: of the file.
        key: config key to name in errors.

    Raises:
        ValueError: it is missing, a folder, empty, a web page, a pointer of git-lfs, or an archive.
    """
    path = Path(path)
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        raise ValueError(f"{key}={path} is a folder: give the file" + (f", such as {best}" if best.is_file() else ""))
    if not path.is_file():
        raise ValueError(f"{key}={path} does not exist")
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for found, what in (
        (not start, "is empty"),
        (text.startswith(b"version https://git-lfs"), "is a pointer of git-lfs, not the weights: run git lfs pull"),
        (text.startswith(b"<"), "is a web page (HTML or XML), not weights: the download went wrong"),
        (text.startswith((b"{", b"[")), "is a text file (JSON), not weights"),
        (start.startswith(b"\x1f\x8b"), "is a compressed archive: unpack it first"),
        (start.startswith(b"\x89HDF"), "is an HDF5 file (Keras), not weights of PyTorch"),
        (start.startswith(b"PK") and path.suffix == ".npz", "is a NumPy archive (JAX): give the weights for PyTorch"),
    ):
        if found:
            raise ValueError(f"{key}={path} {what}")


def read_weights(path: str | Path, key: str) -> tuple[dict[str, Tensor], str]:
    """The named tensors of a file of PyTorch, safetensors or Caffe, read without running code, and their place in it.

    Raises:
        ValueError: the file cannot be read, or holds no named tensors, or several sets of them; names the config key.
    """
    check_file(path, key)
    try:
        content = _read(str(path))
    except Exception as error:  # torch raises whatever its unpickler or its zip reader meets
        raise ValueError(f"{key}={path} does not hold weights that can be read: {_why(str(path), error)}") from error
    place = ""
    while isinstance(content, Mapping) and not _is_state(content):
        sets = {name: value for name, value in content.items() if _holds_state(value)}
        chosen = next((name for name in _WRAPPERS if name in sets), None) or (
            next(iter(sets)) if len(sets) == 1 else None
        )
        if chosen is None:
            what = f"several sets of weights ({', '.join(map(str, sets))})" if sets else "no named tensors"
            raise ValueError(f"{key}={path} holds {what}: save the network's state_dict() alone")
        place, content = f"{place}{chosen}/", sets[chosen]
    if not isinstance(content, Mapping):
        raise ValueError(f"{key}={path} holds a {type(content).__name__}: save the network's state_dict()")
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return merged_state(state), place.rstrip("/")


def _read(path: str) -> Any:
    if path.endswith(".caffemodel"):
        return read_caffemodel(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # eight bytes of length, then JSON
        return safetensors.torch.load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training script are harmless
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True)


def _why(path: str, error: Exception) -> str:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no such file at all
        unsafe = []
    if unsafe and not isinstance(error, safetensors.SafetensorError):
        return (
            f"it holds objects that could run code ({', '.join(sorted(unsafe)[:3])}), such as a whole network: "
            "save the network's state_dict() alone"
        )
    return f"it is truncated, or no file of PyTorch or safetensors ({first_line(error).split('. ')[0]})"


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values()) and _are_names(value)


def _holds_state(value: Any) -> bool:
    return _is_state(value) or (
        isinstance(value, Mapping) and _are_names(value) and any(map(_is_state, value.values()))
    )


def _are_names(value: Iterable[Any]) -> bool:
    return all(isinstance(name, str) for name in value)


class _Fit(NamedTuple):
    """How the names below a prefix fit a network: problems in words, how many names are wrong, names of heads."""

    prefix: str
    given: State
    problems: list[str]
    wrong: int
    heads: list[str]


def load_weights(
    network: nn.Module,
    state: State,
    *,
    classifiers: Iterable[str] = (),
    convert: Filter | None = None,
) -> str:
    """Load named tensors into a network, all that it has or none; a network on the meta device is compared only.

    Args:
        network: what is loaded into.
        state: name -> tensor, as they were in a file.
        classifiers: names of the layer behind the features, which may be there and is left out.
        convert: (state, network) -> state, timm's filter: other names, other sizes of position embeddings. It is asked
            when the names and shapes do not fit as they are.

    Returns:
        What was done beside: a prefix taken off, names left out; empty if nothing was.

    Raises:
        ValueError: names are missing, or left over, or of another shape; gives the first of each.
    """
    own, best = network.state_dict(), None
    for prefix, change in itertools.product(_prefixes(state, own), (None, convert) if convert is not None else (None,)):
        inner: State = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        try:
            with torch.device("cpu"):
                given = inner if change is None else change(dict(inner), network)
        except Exception as error:  # whatever a filter meets in a file of another network
            fit = _Fit(
                prefix, inner, [f"timm cannot convert it ({type(error).__name__}: {first_line(error)})"], len(own), []
            )
        else:
            fit = _compare(prefix, given, own, classifiers)
        best = fit if best is None or fit.wrong < best.wrong else best
        if not best.wrong:
            break
    assert best is not None
    prefix, given, problems, _, left = best
    if problems:
        raise ValueError("; ".join(problems) + (f" (after the prefix {prefix})" if prefix else ""))
    if not any(value.is_meta for value in own.values()):
        network.load_state_dict({name: given.get(name, value) for name, value in own.items()})
    left = [*left, *(name for name in state if not name.startswith(prefix))]
    said = [f"prefix {prefix} taken off"] if prefix else []
    return "; ".join([*said, *([f"left out: {_some(left)}"] if left else [])])


def _prefixes(state: State, own: State) -> list[str]:
    """Prefixes below which a file may hold a network, the most likely first."""
    hits: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in own:
                hits[".".join(parts[:i]) + "." * bool(i)] += 1
    found = sorted(hits, key=lambda p: (-hits[p], bool(_SECOND & set(p.split("."))), len(p), p))
    if found and 2 * hits[found[0]] > len(own):
        return found[:1]
    # Another format of the same network, or another network: only what all names share can be told from a name's parts.
    columns = zip(*map(_folders, state), strict=False)
    common = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    return ["", *(".".join(common[: i + 1]) + "." for i in range(len(common)))]


def _folders(name: str) -> list[str]:
    return name.split(".")[:-1]


def _compare(prefix: str, given: State, own: State, classifiers: Iterable[str]) -> _Fit:
    tops = {name.split(".")[0] for name in own}
    behind = [*(f"{name}." for name in classifiers), *(f"{name}." for name in _HEADS - tops)]
    extra = [name for name in given if name not in own]
    heads = [name for name in extra if name.startswith(tuple(behind))]
    # Files from before 2018 have no such counter; torch fills it in as well.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    left_over = [name for name in extra if name not in heads]
    other = [name for name, value in own.items() if name in given and given[name].shape != value.shape]
    shapes = [
        f"{name} has shape {list(given[name].shape)} where the network has {list(own[name].shape)}" for name in other
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (("missing:", missing), ("not of this network:", left_over), ("wrong shape:", shapes))
        if names
    ]
    return _Fit(prefix, given, problems, len(missing) + len(left_over) + len(other), heads)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_line(error: BaseException) -> str:
    """Of what an error says, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
