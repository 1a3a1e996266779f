"""Models beside a page or inside it, and the panel that lets readers show them their pictures.

Used by the built book and by `Gallery.to_html`. The panel, own.js, comes with the models: a page
without models holds none of it, and asks nothing of anybody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siamcam_lib.files import whole_file
from siamcam_lib.portable import RUNTIMES, Offer, bundle
from siamcam_lib.widgets.base import source


def write(folder: Path, offers: Sequence[Offer]) -> Path:
    """Write models and runtime for the pages of a book, and the script that announces them.

    Args:
        folder: Which pages can load from; made where it is missing.
        offers: The models, in the order of the menu.

    Returns:
        The script, ``models.js``.

    Raises:
        BookError, GalleryError, ModelError: as in `siamcam_lib.portable.bundle`.
        OSError: if the folder cannot be written.
    """
    manifest, files = bundle(offers, RUNTIMES)
    folder.mkdir(parents=True, exist_ok=True)
    for file in set(folder.glob("*.bin")) - {folder / name for name in files}:
        file.unlink()  # of an earlier build
    for name, data in files.items():
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(data)
    with whole_file(folder / "models.js") as temporary:
        temporary.write_text(script(manifest), encoding="utf-8")
    return folder / "models.js"


def script(manifest: Mapping[str, Any]) -> str:
    """What announces models to the explorers of a page: nothing is loaded before a reader asks.

    Args:
        manifest: As `siamcam_lib.portable.bundle` gives it.
    """
    told = json.dumps(manifest, ensure_ascii=True).replace("<", "\\u003c")
    parts = source("base.js", "worker.js", "own.js")
    return f"(() => {{\n{parts}\nannounce({told});\n}})();\n"
