"""Links between files of the repository, which Markdown viewers follow, as links of the site.

What a page of the site shows becomes a link to that page, and where a link says but the name of such a file, it says
the page's title instead: nobody sees files here. Other files of the repository stay downloads, which MyST makes of them
by itself; a link to what is not there is a warning, so that a strict build fails.
"""

from __future__ import annotations

import posixpath
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


def say_titles(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let links that say the name of a file say the title of the page that shows it."""
    for node in doctree.findall(nodes.reference):
        target = node.get("refuri", "")
        if not node.get("internal") or not node.astext().endswith(".md") or "#" in target:
            continue
        shown = posixpath.normpath(posixpath.join(posixpath.dirname(page), target)).removesuffix(".html")
        if shown in app.env.titles:
            node.clear()
            node += nodes.inline("", app.env.titles[shown].astext())


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", link_pages)
    app.connect("doctree-resolved", say_titles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
