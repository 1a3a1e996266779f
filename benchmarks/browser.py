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


def launch(playwright: Any) -> Any | None:
    """Start the browser that CHROMIUM names, or the system's, or Playwright's own; None without."""
    own = playwright.chromium.executable_path
    places = [os.environ.get("CHROMIUM"), "/usr/bin/chromium", shutil.which("chromium"), own]
    found = next((p for p in places if p and Path(p).exists()), None)
    return playwright.chromium.launch(executable_path=found, args=FLAGS) if found else None
