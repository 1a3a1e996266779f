"""A hyphen that stands before a number becomes a minus, in text and in tables of results.

Python prints "-0.1"; a reader is shown "−0.1". Code, what it printed, formulas and addresses are
left alone, and so is a hyphen after a word, a number or another hyphen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes

HYPHEN = re.compile(r"(?<![\w.,)\]/-])-(?=\.?\d)")
CELL = re.compile(r"(<t[dh]\b[^>]*>)([^<]*)(?=</t[dh]>)")
ALONE = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)


def in_text(text: str) -> str:
    """Plain text with its minuses."""
    return HYPHEN.sub("−", text)


def in_tables(html: str) -> str:
    """HTML with minuses in the cells of its tables, and nowhere else."""
    return CELL.sub(lambda cell: cell[1] + in_text(cell[2]), html)


def write(app: Any, page: nodes.document) -> None:
    """Put the minuses into all text of a page and into the tables that its cells show."""
    for raw in list(page.findall(nodes.raw)):
        if raw.get("format") == "html" and "<td" in raw.astext():
            told = in_tables(raw.astext())
            raw.parent.replace(raw, nodes.raw(raw.rawsource, told, **raw.attributes))
    for text in list(_texts(page)):
        if HYPHEN.search(text):
            text.parent.replace(text, nodes.Text(in_text(text)))


def _texts(node: nodes.Element) -> Iterator[nodes.Text]:
    for child in node.children:
        if isinstance(child, nodes.Text):
            yield child
        elif not isinstance(child, ALONE):
            yield from _texts(child)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
