"""Numbers as print has them: a minus before what is below zero, an interval in one piece.

Python prints "-0.1 [-0.2, 0.1]"; a reader is shown "−0.1 [−0.2, 0.1]", which no line breaks inside
the brackets, nor "0.3 ± 0.1" at its sign. Code, what it printed, formulas and addresses are left
alone, and so is a hyphen after a word, a number or another hyphen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes

HYPHEN = re.compile(r"(?<![\w.,)\]/-])-(?=\.?\d)")
INTERVAL = re.compile(r"(\[[−+\d.%]+,) (?=[−+\d.%]+\])")
EITHER_WAY = re.compile(r"(?<=\d) ± (?=\.?\d)")
CELL = re.compile(r"(<t[dh]\b[^>]*>)([^<]*)(?=</t[dh]>)")
ALONE = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)


def in_text(text: str) -> str:
    """Plain text with its minuses and intervals."""
    text = INTERVAL.sub("\\1\N{NO-BREAK SPACE}", HYPHEN.sub("−", text))
    return EITHER_WAY.sub("\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}", text)


def in_tables(html: str) -> str:
    """HTML with minuses and intervals in the cells of its tables, and nowhere else."""
    return CELL.sub(lambda cell: cell[1] + in_text(cell[2]), html)


def write(app: Any, page: nodes.document) -> None:
    """Mend all text of a page, and the tables that its cells show."""
    for raw in list(page.findall(nodes.raw)):
        if raw.get("format") == "html" and "<td" in raw.astext():
            told = in_tables(raw.astext())
            raw.parent.replace(raw, nodes.raw(raw.rawsource, told, **raw.attributes))
    for text in list(_texts(page)):
        if (told := in_text(text)) != text:
            text.parent.replace(text, nodes.Text(told))


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
