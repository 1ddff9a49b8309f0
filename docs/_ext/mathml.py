"""Formulas as MathML, made when the site is built: browsers draw it without scripts or fonts from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# The converter shows what it does not know, commands and the marks of columns and lines, as if they were letters.
_UNKNOWN = re.compile(r"\\[a-zA-Z]+|<mi>&</mi>|linebreak")
# And it leaves out what is missing.
_PARTS = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "mover": 2, "munder": 2, "msubsup": 3, "munderover": 3}


def mathml(tex: str, display: bool) -> str:
    """MathML of a formula.

    Parameters
    ----------
    tex : str
        The formula in LaTeX. Several lines of a displayed one may stand without an environment.
    display : bool
        Whether it stands on lines of its own.

    Raises
    ------
    ValueError
        The converter cannot read the formula, or does not know a command in it.
    """
    if display and r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    tex = tex.replace("{aligned}", "{split}")  # the converter's name for it
    try:
        made = convert(tex, display="block" if display else "inline")
    except Exception as error:  # the converter has a dozen kinds
        raise ValueError(f"{type(error).__name__} {error}") from error
    unknown = _UNKNOWN.findall(made)
    if unknown:
        raise ValueError(f"the converter does not know {', '.join(sorted(set(unknown)))}")
    for element in ElementTree.fromstring(made).iter():
        name = element.tag.rpartition("}")[2]
        if len(element) != _PARTS.get(name, len(element)):
            raise ValueError(f"a part of {name} is missing")
    return made


def _render(node: Any, display: bool) -> str:
    tex = node.astext()
    try:
        return mathml(tex, display)
    except ValueError as error:
        logger.warning("the formula %r cannot be MathML: %s", tex, error, location=node)
        return f"<code>{html.escape(tex)}</code>"


def visit_math(translator: Any, node: Any) -> None:
    translator.body.append(translator.starttag(node, "span", "", CLASS="math notranslate"))
    translator.body.append(f"{_render(node, display=False)}</span>")
    raise nodes.SkipNode


def visit_displaymath(translator: Any, node: Any) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate"))
    translator.body.append(f"{_render(node, display=True)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
