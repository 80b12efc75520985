import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TARGETS = {name: f"dml.losses.{name.lower()}.{name}Loss" for name in ("Triplet", "Lifted", "NPair")}
TARGETS = {name.lower(): target for name, target in TARGETS.items()} | {"nra": "dml.losses.nra.NRALoss"}


@pytest.fixture
def write_run(tmp_path: Path):
    """Write a finished run of two-dimensional embeddings as train.py leaves it."""

    def write(name, method="nra", seed=0, score=0.9, metrics=None, **row: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        full = {
            "method": method,
            "data": "digits",
            "dimension": 2,
            "seed": seed,
            **row,
            "loss": {"_target_": TARGETS.get(method, f"dml.losses.{method}.Loss"), **row.get("loss", {})},
        }
        metrics = metrics or {"val/map": 0.1, "test/recall@1": score / 2, "test/map": score}
        content = {"metrics": metrics, "row": full}
        (folder / "metrics.json").write_text(json.dumps(content))
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1, 2], 20)
        np.savez_compressed(
            folder / "test_embeddings.npz",
            embeddings=rng.normal(size=(60, 2)) + 8 * labels[:, None],
            labels=labels,
            class_names=np.array(["ant", "bee", "cow"]),
        )
        return folder

    return write
