"""What the repository itself promises: no large file by mistake, and a licence that every place agrees on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("size", "status"), [(1_000_001, 1), (999_999, 0)])
def test_a_large_tracked_file_is_named(tmp_path, size, status):
    (tmp_path / "wheel with blank.whl").write_bytes(b"0" * size)
    subprocess.run("git init -q && git add .", shell=True, cwd=tmp_path, check=True)
    found = subprocess.run(
        ["bash", str(ROOT / ".ci" / "large_files")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == status
    assert ("wheel with blank.whl is above 1 MB" in found.stderr) == bool(status)


def test_a_large_file_that_is_not_tracked_is_nobodys_business(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"0" * 2_000_000)
    subprocess.run("git init -q", shell=True, cwd=tmp_path, check=True)
    subprocess.run(["bash", str(ROOT / ".ci" / "large_files")], cwd=tmp_path, check=True)


def test_licence_and_version_are_the_same_everywhere():
    project, citation = (ROOT / "pyproject.toml").read_text(), (ROOT / "CITATION.cff").read_text()
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert 'license = "MIT"' in project and "license: MIT" in citation
    version = re.search(r'^version = "(.*)"', project, flags=re.M)
    assert version and f"version: {version[1]}" in citation
