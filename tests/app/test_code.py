"""The fingerprint of the code is of what a run uses: an edit of that changes it, anything else does not."""

import subprocess
import sys

import pytest

from dml.app.code import code_version, used_files
from tests.app.conftest import ROOT, composed


def test_a_run_uses_its_own_loss_and_the_rooms_beside_it_and_no_other():
    used = used_files(["dml.losses.nra.NRALoss", "torch.optim.AdamW"])
    assert {"dml.losses.nra", "dml.products", "dml.app.run", "dml.engine.module", "dml.whole_file"} <= used.keys()
    assert not {"dml.losses.triplet", "dml.data.cub200", "dml.app.sweep"} & used.keys()
    assert not any(name.startswith(("dml.report", "torch", "numpy")) for name in used)
    assert all(file.is_file() for file in used.values())


def test_each_part_of_a_config_counts_but_the_logger():
    plain = code_version(composed("train"))
    assert code_version(composed("train", "logger=csv")) == plain
    for other in ("method=triplet", "data=mnist", "method=memory"):
        assert code_version(composed("train", other)) != plain, other


@pytest.fixture
def copied(tmp_path):
    """A copy of the package: path below it -> its fingerprint of NRA on the digits once this was appended there."""
    (tmp_path / "dml").mkdir()
    for file in (ROOT / "dml").rglob("*.py"):
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    code = (
        "from dml.app.code import code_version\n"
        "parts = {'loss': 'dml.losses.nra.NRALoss', 'data': 'dml.data.digits.load'}\n"
        "print(code_version({group: {'_target_': target} for group, target in parts.items()}))"
    )

    def fingerprint(appended_to: str | None = None) -> str:
        if appended_to is not None:
            with (tmp_path / "dml" / appended_to).open("a") as file:
                file.write("\n# changed\n")
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True).stdout

    return fingerprint


def test_an_edit_of_what_is_used_is_other_code_and_no_other_edit_is(copied):
    before = copied()
    assert len(before) == 13
    for file in ("losses/triplet.py", "losses/mine.py", "data/mnist.py", "report/tables.py", "app/sweep.py"):
        assert copied(file) == before, file
    for file in ("losses/nra.py", "products.py", "data/digits.py", "engine/module.py", "models/backbones.py"):
        now = copied(file)
        assert now != before, file
        before = now


@pytest.mark.parametrize("init", [True, False])
def test_a_part_of_ones_own_counts_with_what_it_imports_from_beside_it(tmp_path, monkeypatch, init):
    package = tmp_path / f"own_{init}"
    package.mkdir()
    if init:
        (package / "__init__.py").write_text("")
    (package / "loss.py").write_text("import numpy\nfrom . import shared\nfrom .deep import f\n\nclass Loss: ...\n")
    for name in ("shared", "deep", "other"):
        (package / f"{name}.py").write_text("f = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"loss": {"_target_": f"{package.name}.loss.Loss"}}
    first = code_version(config)
    assert package.name not in sys.modules  # found, not imported
    for name, counts in (("other", False), ("loss", True), ("shared", True), ("deep", True)):
        before = code_version(config)
        with (package / f"{name}.py").open("a") as file:
            file.write("g = 2\n")
        assert (code_version(config) != before) == counts, name
    assert code_version({"loss": {"_target_": "dml.losses.nra.NRALoss"}}) != first
