"""Imports flow one way: parts <- engine <- app <- train.py, evaluate.py. Read from syntax trees, nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("models", "losses", "samplers", "retrieval", "data")
# Package of dml -> the packages of dml that its files may import.
INSIDE: dict[str, set[str]] = {
    **{part: {part} for part in PARTS},
    "losses": {"losses", "products", "hierarchy"},
    "samplers": {"samplers", "words", "hierarchy"},
    "retrieval": {"retrieval", "products"},
    "data": {"data", "whole_file", "locks", "printable", "words"},
    "report": {"report", "printable", "words"},
    "testing": {"testing", "data"},
    "engine": {"engine", "load", "whole_file", "printable", "words"},  # dml.load: what knows configs, when it is called
    "app": {*PARTS, "report", "engine", "app", "whole_file", "locks", "printable", "words"},
    "use": {*PARTS, "report", "engine", "app", "use", "whole_file", "locks", "printable", "words"},
    "": {"app", "report", "use"},  # train.py, evaluate.py, hydra_plugins, and the front door dml.load
}
# A part's own room for what its files share: it knows none of them.
ROOMS = (("dml", "losses", "building_blocks"),)
# Library -> who may import it; the longest name that fits decides.
LIBRARIES: dict[str, set[str]] = {
    **{key: {"engine", "app", "use"} for key in ("pytorch_lightning", "lightning", "lightning_fabric")},
    **{key: {"app", "use", ""} for key in ("hydra", "omegaconf")},
    "torch.distributed": {"dml/engine/gather.py"},
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports, or reaches as an attribute; relative imports begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"


def wrong_imports(path: str, source: str) -> list[str]:
    """The imports of a file (path below the repository) that the house does not allow."""
    parts = PurePosixPath(path).parts
    package = parts[1] if parts[0] == "dml" and len(parts) > 2 else ""
    inside = [".".join(room) for room in ROOMS if parts[: len(room)] == room]
    wrong = []
    for name in imported(ast.parse(source)):
        if name.startswith("."):
            wrong.append(name)
        elif name.split(".")[0] == "dml":
            first = [*name.split("."), ""][1]
            if first not in INSIDE[package] or (first == package and any(room not in name for room in inside)):
                wrong.append(name)
        else:
            allowed = [who for library, who in LIBRARIES.items() if f"{name}.".startswith(f"{library}.")]
            if any(not {package, path} & who for who in allowed):
                wrong.append(name)
    return wrong


def test_every_file_keeps_to_the_layers():
    files = sorted(
        [*ROOT.glob("dml/**/*.py"), *ROOT.glob("hydra_plugins/*.py"), ROOT / "train.py", ROOT / "evaluate.py"]
    )
    assert {file.parent.name for file in files} >= {*PARTS, "engine", "app", "report"}
    found = {(path := file.relative_to(ROOT).as_posix()): wrong_imports(path, file.read_text()) for file in files}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_every_package_is_known():
    packages = {path.parent.name for path in ROOT.glob("dml/*/__init__.py")}
    assert packages == set(INSIDE) - {""}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("dml/losses/x.py", "from dml.models.embedder import Embedder"),
        ("dml/losses/x.py", "from dml import samplers"),
        ("dml/losses/x.py", "import dml.engine.module as m"),
        ("dml/losses/x.py", "def f():\n    from dml.engine.gather import gather_batch"),
        ("dml/losses/x.py", "from ..models import embedder"),
        ("dml/data/x.py", "import importlib\nimportlib.import_module('dml.retrieval.search')"),
        ("dml/losses/building_blocks/x.py", "from dml.losses.nra import NRALoss"),
        ("dml/models/x.py", "import pytorch_lightning as pl"),
        ("dml/models/x.py", "from lightning.pytorch import Trainer"),
        ("dml/samplers/x.py", "from torch.distributed import get_rank"),
        ("dml/samplers/x.py", "import torch\nrank = torch.distributed.get_rank()"),
        ("dml/samplers/x.py", "from torch import distributed"),
        ("dml/retrieval/x.py", "from omegaconf import DictConfig"),
        ("dml/engine/x.py", "from hydra.utils import instantiate"),
        ("dml/engine/x.py", "from dml.losses.nra import NRALoss"),
        ("dml/engine/x.py", "from dml.app import build"),
        ("dml/engine/x.py", "from dml.report.figures import draw_embedding"),
        ("dml/engine/module.py", "import torch.distributed as dist"),
        ("dml/app/x.py", "import torch.distributed as dist"),
        ("dml/report/x.py", "from dml.retrieval.metrics import recall_at_k"),
        ("train.py", "from dml.engine.module import MetricLearner"),
    ],
)
def test_a_wrong_import_is_found(path, line):
    assert len(wrong_imports(path, f"import torch\n{line}\n")) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("dml/losses/x.py", "from dml.losses.building_blocks.pairwise import distance_to"),
        ("dml/losses/building_blocks/x.py", "from dml.losses.building_blocks.contract import zero"),
        ("dml/losses/building_blocks/x.py", "from dml.products import matmul"),
        ("dml/engine/gather.py", "import torch.distributed as dist"),
        ("dml/engine/x.py", "import pytorch_lightning as pl\nfrom dml.engine.gather import gather_rows"),
        ("dml/app/x.py", "import hydra\nfrom dml.data.dataset import Source\nfrom dml.report import figures"),
        ("train.py", "import hydra\nfrom dml.app.run import run_train"),
        ("dml/losses/x.py", "import hydration, torch.distributions"),
    ],
)
def test_a_right_import_is_not(path, line):
    assert wrong_imports(path, line) == []
