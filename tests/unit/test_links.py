"""Links lead somewhere: each file and heading that a page names is there.

Addresses in the net are asked for by `make links`, which needs one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", ".github/**/*.md", "book/**/*.md", "book/**/*.ipynb", "examples/*.md")
    for path in sorted(ROOT.glob(pattern))
    if ".ipynb_checkpoints" not in path.parts
]


def text(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links(path: Path) -> Iterator[str]:
    """Where the links and pictures of a page lead."""
    for block in MarkdownIt().parse(text(path)):
        for token in block.children or ():
            yield from (str(v) for k, v in token.attrs.items() if k in ("href", "src"))


def anchors(path: Path) -> set[str]:
    """What a link may name within a page: headings, as GitHub and MyST spell them, and labels."""
    said = text(path)
    headings = re.findall(r"^#+ +(.+)$", said, flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {name.strip().replace(" ", "-") for name in kept} | set(re.findall(r"^\((.+)\)=", said))


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_what_is_there(page):
    path, lost = ROOT / page, []
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:
            # an address is whole, and nobody between can change what it gives
            ok = parts.scheme in ("https", "mailto") and (parts.netloc or parts.scheme == "mailto")
        else:
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = target.is_relative_to(ROOT) and target.exists()
            ok = inside and (
                not parts.fragment
                or target.suffix not in (".md", ".ipynb")
                or parts.fragment in anchors(target)
            )
        if not ok:
            lost.append(link)
    assert lost == []


def test_every_page_is_looked_at_and_some_link():
    assert {"README.md", "book/intro.ipynb", "book/appendix/questions.md"} <= set(PAGES)
    assert sum(len(list(links(ROOT / page))) for page in PAGES) > 50
