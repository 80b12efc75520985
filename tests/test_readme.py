"""README and documentation stay true: what they name is there, and the overrides they show compose."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
MADE = ("docs/_build", "docs/examples", "docs/reference/config", "docs/reference/commands.md")  # by make docs
FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = {name: file.read_text() for file in FILES if not (name := str(file.relative_to(ROOT))).startswith(MADE)}


def commands(program):
    """(page, overrides) of each command line that a page shows in a box."""
    found = []
    for page, text in PAGES.items():
        for box in re.findall(r"^```(?:\w*)\n(.*?)^```", text, flags=re.M | re.S):
            for line in re.findall(rf"^(?:srun |torchrun .* )?(?:python )?{program} ([^\n]*)", box, flags=re.M):
                found.append((page, re.split(r"\s#|;|\s&&|\s\|", line)[0]))
    return found


def overrides_of(command):
    words = [word.strip("'\"") for word in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\S)+", command)]
    words = [word for word in words if "=" in word and not word.startswith("--")]
    # A sweep's lists and ranges compose with one value.
    words = [re.sub(r"=\w+\(.*\)", "=1", word) for word in words]
    return [re.sub(r"=([^\[{,]*),.*", r"=\1", word) for word in words]


def test_there_are_commands_to_check():
    assert len([page for page, _ in commands(r"train\.py") if page == "README.md"]) >= 5
    assert len(commands(r"train\.py")) >= 25


@pytest.mark.parametrize(("page", "command"), commands(r"train\.py"))
def test_train_commands_compose(page, command):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert "trainer" in compose("train", overrides_of(command))


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page):
    for path in set(re.findall(r"(?<![\w/])(?:dml|conf|docs|tests|benchmarks)/[\w/.]*\w", PAGES[page])):
        if "mine" not in path and "NAME" not in path:
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", "\n".join(PAGES.values()), flags=re.M)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
