"""How Sphinx builds the site: ``make docs``, or ``sphinx-build -W --keep-going -c docs -b html . site``.

The source folder is the repository, not ``docs/``, so that a page may link to any file by a relative path. The same
links work where the pages are read as plain files. A link to a page or to a heading that does not exist stops the
build. A link to a file that is not a page becomes a download.
"""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.transforms.post_transforms import SphinxPostTransform
from typer.testing import CliRunner

from lidar_sampling import __version__
from lidar_sampling.cli import app as command_line

ROOT = Path(__file__).parent.parent
ROOMS = (
    "methods",
    "rewards",
    "solvers",
    "discrete",
    "discrete.molecules",
    "glyph",
    "runs",
    "evaluation",
    "service",
    "testing",
)

project = "lidar-sampling"
author = "The lidar-sampling maintainers"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "THIRD_PARTY.md",
    "*/README.md",
    "training/*/README.md",
    "docs/**.md",
]
exclude_patterns = [".*", "site", "**/data", "**/.venv"]

highlight_language = "text"  # commands and output, where a block does not say what it is
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"lidar-sampling {release}"
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it would be fetched, which a page opened from the disk may not do
html_extra_path = ["_site"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}


def exported(module: Any) -> list[str]:
    """Return the names that a package shows: those it re-exports as ``X as X``, and its own without an underscore."""
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.name == alias.asname]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
    return [name for name in names if not name.startswith("_")]


def escape_shapes(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep reStructuredText from reading the star of a shape such as (B, *) as the beginning of emphasis."""
    for number, line in enumerate(lines):
        parts = line.split("``")  # every second part is code
        parts[::2] = [re.sub(r"(?<!\\)\*(?=[),])", r"\\*", part) for part in parts[::2]]
        lines[number] = "``".join(parts)


class FolderLinks(SphinxPostTransform):
    """Turn links to a folder into links to its README, where it has one, and into plain text where it has none."""

    default_priority = 1

    def run(self, **arguments: Any) -> None:
        """Replace the links of one page."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            page = Path(self.env.doc2path(link.get("refdoc", self.env.docname)))
            if link.get("refdomain") == "doc" or "reftarget" not in link:
                continue
            folder = (page.parent / link["reftarget"]).resolve()
            if not folder.is_dir():
                continue
            document = (folder / "README").relative_to(ROOT).as_posix()
            if document in self.env.found_docs:
                link["reftarget"], link["refdomain"], link["reftype"] = document, "doc", "doc"
            else:
                link.replace_self(nodes.inline("", "", *link.children))


def give_a_title(app: Sphinx, page: str, source: list[str]) -> None:
    """Give tables of results a title: ``lidar compare`` writes them without one, for the menu and the search."""
    if page.startswith("docs/results/") and not re.search(r"^# ", source[0], re.MULTILINE):
        source[0] = f"# All numbers: {Path(page).parent.relative_to('docs/results')}\n\n{source[0]}"


def add_the_help(app: Sphinx, page: str, source: list[str]) -> None:
    """Write what ``lidar --help`` and the help of each command say into the page of the command line."""
    if page != "docs/api/command":
        return
    group = typer.main.get_command(command_line)
    for name in ["", *sorted(group.commands)]:
        said = CliRunner().invoke(command_line, [name, "--help"] if name else ["--help"], prog_name="lidar")
        if said.exit_code:
            raise ValueError(f"lidar {name} --help fails: {said.output}")
        source[0] += f"\n## {f'lidar {name}'.strip()}\n\n```text\n{said.output.strip()}\n```\n"


def leave_out_of_the_menu(app: Sphinx, tree: Any) -> None:
    """Allow pages of results that the menu does not list: the index of results links to each (tests/test_docs.py)."""
    page = app.env.current_document.docname
    if page.startswith("docs/results/"):
        app.env.metadata[page]["orphan"] = ""


def setup(app: Sphinx) -> None:
    """Register what this site adds to Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings call them
    for room in ROOMS:
        module = import_module(f"lidar_sampling.{room}")
        module.__all__ = exported(module)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", escape_shapes, priority=400)  # before napoleon
    app.connect("source-read", give_a_title)
    app.connect("source-read", add_the_help)
    app.connect("doctree-read", leave_out_of_the_menu)
    app.add_post_transform(FolderLinks)
