"""The reference of config keys explains each of them."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    sys.path.insert(0, str(DOCS))
    try:
        import config_reference
    finally:
        sys.path.remove(str(DOCS))
    folder = tmp_path_factory.mktemp("config")
    config_reference.write(folder)
    return {page.stem: page.read_text() for page in folder.glob("*.md")}


def rows(page):
    return [[cell.strip() for cell in line.split(" | ")] for line in page.splitlines() if line.startswith("| `")]


def test_each_key_has_a_type_and_an_explanation(pages):
    found = [row for page in pages.values() for row in rows(page)]
    assert len(found) > 500
    for row in found:
        assert len(row) == 4 and row[2] and len(row[3].strip(" |")) > 2, row


def test_explanations_come_from_the_file_the_docstring_or_another_file(pages):
    assert "square that the network sees; null: what" in pages["transform"]  # conf/transform/paper.yaml
    assert "by how much the squared distance of a negative must be larger" in pages["loss"]  # TripletLoss
    assert "`gradient_clip_val`" in pages["trainer"]  # no file has it
    assert "| `transform.size` | `null` | a whole number of at least 1 or null |" in pages["transform"]
