"""Sphinx builds docs/ into a site that needs nothing from elsewhere, neither when it is built nor when it is read."""

from __future__ import annotations

import sys
from pathlib import Path

import fastrnn

sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))

project = "fastrnn"
author = "fastrnn contributors"
copyright = "fastrnn contributors, MIT licence"
version = release = fastrnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "mathml", "repository"]
# Pages in project/ show the files of the repository's root, and those of a build are not pages.
exclude_patterns = ["_ext", "_static"]
root_doc = "index"

# Every reference has a target, but for types of other libraries, and names that docstrings only set as code.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:obj", ".*"), ("py:exc", ".*")]
default_role = "py:obj"
suppress_warnings = ["toc.not_included"]  # tests/test_site.py sees to that, and excepts what docs/evidence.md links to

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# Docstrings say of what types arguments are, in NumPy's words.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
viewcode_line_numbers = True

html_theme = "furo"
html_title = f"fastrnn {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False
