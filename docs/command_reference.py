"""Writes the page of the commands' help."""

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from dml.report.__main__ import main as report
from dml.use.command import main as use

_HEAD = """# Commands

`python train.py` and `python evaluate.py` take config keys ({doc}`config/index`). The others take options; this page is
their own `--help`. {doc}`/use` and {doc}`/sweeps` show them at work.
"""


def write(path: Path) -> None:
    """Write the page, if it would change (Sphinx builds changed pages again)."""
    names = re.findall(r"^    (\w+) ", _help(use, []), flags=re.M)
    calls = [(f"dml {name}", use, [name]) for name in names] + [("python -m dml.report", report, [])]
    text = "\n".join([_HEAD, *(f"## {title}\n\n```text\n{_help(main, given)}```\n" for title, main, given in calls)])
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _help(main: Callable[[list[str]], None], given: list[str]) -> str:
    with (
        patch.dict(os.environ, {"COLUMNS": "110"}),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.suppress(SystemExit),
    ):
        main([*given, "--help"])
    return out.getvalue()
