"""Drops sphinx-thebe's scripts from the pages.

Jupyter Book 1 always loads them, twice (an error in the browser's console), and they name a
server of others; no page of this book asks one.
"""

from __future__ import annotations

from typing import Any


def _is_thebe(script: Any) -> bool:
    body = getattr(script, "attributes", {}).get("body") or ""
    return "thebe" in str(getattr(script, "filename", script) or "") or "THEBE_JS_URL" in body


def _drop(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    scripts = context.get("script_files", [])
    context["script_files"] = [script for script in scripts if not _is_thebe(script)]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, after all other extensions have added their scripts."""
    app.connect("html-page-context", _drop, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
