"""Takes out of the pages what no page needs.

- The theme tells the browser to load three fonts early, in a way that a browser refuses for pages
  opened as plain files (an error in its console). The style sheet loads them anyway.
- Font Awesome's script, 1.5 MB before anything is shown, redraws icons that its style sheet draws.
- The references are called a list, whose items are none to a screen reader; each is an entry of a
  bibliography, and says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_NEEDLESS = re.compile(
    r'\s*<link rel="preload" as="font"[^>]*>|\s*<script src="[^"]*/fontawesome/[^"]*"></script>'
    r'|(?<=<div) role="list"(?= class="citation-list">)'
)


def _take_out(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            page.write_text(_NEEDLESS.sub("", page.read_text("utf-8")), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, after the last page is written."""
    app.connect("build-finished", _take_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
