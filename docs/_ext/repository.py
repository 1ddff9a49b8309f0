"""Links between files of the repository, which Markdown viewers follow, as links of the site.

What a page of the site shows becomes a link to that page. Other files of the repository stay downloads, which MyST
makes of them by itself; a link to what is not there is a warning, so that a strict build fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

# Markdown files beside docs/, and the pages that show them.
PAGES = {
    "README": "index",
    "CONTRIBUTING": "project/contributing",
    "CHANGELOG": "project/changelog",
    "SECURITY": "project/security",
}


def link_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Lead links to files of the repository's root to the pages that show them."""
    root = Path(app.srcdir).resolve().parent
    pages = {str(root / name): page for name, page in PAGES.items()}
    for node in doctree.findall(addnodes.pending_xref):
        if node.get("refdomain") == "doc" and node["reftarget"] in pages:
            node["reftarget"] = pages[node["reftarget"]]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", link_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
