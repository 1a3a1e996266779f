"""Takes the font hints out of the pages' heads.

The theme tells the browser to load three fonts early, in a way that a browser refuses for pages
opened as plain files (an error in its console). The fonts are loaded by the style sheet anyway.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_HINT = re.compile(r'\s*<link rel="preload" as="font"[^>]*>')


def _take_out(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            page.write_text(_HINT.sub("", page.read_text("utf-8")), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, after the last page is written."""
    app.connect("build-finished", _take_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
