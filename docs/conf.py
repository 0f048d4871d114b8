"""The documentation's site: `make docs` builds it into build/docs, from these files and the docstrings.

Sphinx with MyST (Markdown) and the theme Furo, which brings all that its pages show: a page asks no other host for
anything.
"""

from __future__ import annotations

from sphinx.application import Sphinx

import emu

project = "pvemu"
author = "the pvemu developers"
copyright = author
version = release = emu.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]       # assembly is GNU's, which the highlighter half knows

highlight_language = "none"

html_theme = "furo"
html_title = f"pvemu {version}"
html_show_sphinx = False

# Docstrings are plain text: `name` is code, sections are Google's
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def literal_examples(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Show a command's examples as they stand: sphinx-click makes lines of prose of what --help leaves alone."""
    shown: list[str] = []
    for line in lines:
        text = line.removeprefix("| ")
        if text == line:
            shown.append(line)
        elif text.startswith("  "):
            shown.append(f"    {text}")
        else:
            shown += [f"{text.removesuffix(':')}::", ""]
    lines[:] = shown


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("sphinx-click-process-description", literal_examples)
