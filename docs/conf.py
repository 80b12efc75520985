"""Sphinx: `make docs` builds docs/_build/html, offline."""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import command_reference  # noqa: E402
import config_reference  # noqa: E402

import dml  # noqa: E402, F401  (autodoc reads its docstrings)

project = "dml"
copyright = "the developers of dml"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/README.rst", "sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # sphinx-gallery's sorting key is a class

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True

# Each example is executed by the build, with its output and its figures on the page.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": r"/run_",
    "show_memory": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "dml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
}
html_math_renderer = "mathml"


def _inline(writer: object, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer: object, node: nodes.math_block) -> None:
    formula = convert(node.astext(), display="block")
    writer.body.append(f'<div style="text-align: center; overflow-x: auto; padding: 0.5em">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers draw without a script from a network; pages that repeat the code."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    config_reference.write(HERE / "reference" / "config")
    command_reference.write(HERE / "reference" / "commands.md")
