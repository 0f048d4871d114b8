"""The documentation's site: `make docs` builds it into build/docs, from these files and the docstrings.

Sphinx with MyST (Markdown) and the theme Furo, which brings all that its pages show: a page asks no other host for
anything.
"""

from __future__ import annotations

import emu

project = "pvemu"
author = "the pvemu developers"
copyright = author
version = release = emu.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["traps/README.md"]
suppress_warnings = [
    "toc.empty_glob",               # a page that a tree names by a pattern need not be there
    "misc.highlighting_failure",    # reports of tests and machines are no language
]

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
autodoc_type_aliases = {"Path_": "Path_"}
