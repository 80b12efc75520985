"""The pages of losses: keys, defaults and weights are those of the code."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("loss_pages", ROOT / "docs" / "loss_pages.py")
loss_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(loss_pages)
PAGES = sorted(loss_pages.PAGES.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_the_code_says(page):
    text = page.read_text()
    assert text.count("<!-- keys -->") == 1 and "| " in loss_pages.written(page)
    assert loss_pages.written(page) == text, "python docs/loss_pages.py writes it anew"


def test_each_loss_of_the_choice_has_a_page_with_its_source():
    index = (loss_pages.PAGES / "index.md").read_text().partition("## All losses")[0]
    for stem in loss_pages.stems():
        assert (ROOT / "conf" / "loss" / f"{stem}.yaml").exists()
        page = (loss_pages.PAGES / f"{stem}.md").read_text()
        assert ("**Source.**" in page and "**Our choices.**" in page) or stem in ("sum", "fast_ap"), stem
        assert stem in index or stem in ("sum", "npair"), stem
