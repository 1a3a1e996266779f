"""Words of the glossary lead to it where a page first uses them; authors need not think of it.

Headings, code, formulas, links and what code has printed are left alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

GLOSSARY = "book/appendix/glossary"
ALONE = (nodes.title, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block,
         nodes.reference, nodes.raw, nodes.rubric, nodes.caption, nodes.thead, nodes.target,
         nodes.citation, nodes.footnote, addnodes.pending_xref,
         addnodes.desc_signature)  # fmt: skip


def words(glossary: str) -> dict[str, str]:
    """Each word or phrase that a page may use, and the entry of the glossary that explains it.

    Args:
        glossary: Its source. ``deletion, insertion`` is one entry for two words.
    """
    entries = glossary.partition("```{glossary}")[2].partition("```")[0].splitlines()
    named = [line for line in entries if line.strip() and not line[0].isspace()]
    return {word.strip(): entry for entry in named for word in entry.split(",")}


def pattern(known: dict[str, str]) -> re.Pattern[str]:
    """Finds any of the words, the longest first, in singular or plural; capitals as they are."""
    longest = sorted(known, key=len, reverse=True)
    forms = (re.escape(w) if any(c.isupper() for c in w[1:]) else f"(?i:{re.escape(w)})(?:s|es)?"
             for w in longest)  # fmt: skip
    return re.compile(r"(?<![\w-])(?:" + "|".join(forms) + r")(?![\w-])")


def link(app: Any, page: nodes.document) -> None:
    """Make the first use of each word on a page a reference to the glossary."""
    name = app.env.docname
    if name == GLOSSARY:
        return
    known = words((Path(app.srcdir) / f"{GLOSSARY}.md").read_text(encoding="utf-8"))
    lower, told, search = {w.lower(): entry for w, entry in known.items()}, set(), pattern(known)

    def entry(found: str) -> str:
        return next(lower[form] for form in (found.lower(), found.lower()[:-1], found.lower()[:-2])
                    if form in lower)  # fmt: skip

    for text in list(page.findall(nodes.Text)):
        if _left_alone(text):
            continue
        parts: list[nodes.Node] = []
        end = 0
        for found in search.finditer(text):
            if (target := entry(found[0])) not in told:
                told.add(target)
                parts += [nodes.Text(text[end : found.start()]), _reference(found[0], target, name)]
                end = found.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def _left_alone(text: nodes.Text) -> bool:
    above = text.parent
    while above is not None:
        if isinstance(above, ALONE) or "cell_output" in above.get("classes", ()):
            return True
        above = above.parent
    return False


def _reference(said: str, target: str, page: str) -> nodes.Node:
    return addnodes.pending_xref(
        "", nodes.inline(said, said, classes=["term"]), refdomain="std", reftype="term",
        reftarget=target, refdoc=page, refexplicit=True, refwarn=True,
    )  # fmt: skip


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
