"""The Chromium that pages are measured and tested in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
NONE = (
    "no Chromium here: install one (Debian: apt-get install chromium; elsewhere: "
    ".venv/bin/python -m playwright install chromium), or set CHROMIUM to its path"
)


# A graphics card that is computed: slow, and good for testing what a real one would do.
GRAPHICS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]


def launch(playwright: Any, flags: list[str] = FLAGS) -> Any | None:
    """Start the browser that CHROMIUM names, or the system's, or Playwright's own; None without."""
    return start(playwright.chromium, flags)


def start(chromium: Any, flags: list[str]) -> Any | None:
    """As `launch`, of a kind of browser that is known already."""
    places = ["/usr/bin/chromium", shutil.which("chromium"), chromium.executable_path]
    places.insert(0, os.environ.get("CHROMIUM"))
    found = next((p for p in places if p and Path(p).exists()), None)
    return chromium.launch(executable_path=found, args=flags) if found else None
