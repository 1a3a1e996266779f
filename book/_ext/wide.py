"""Room for pictures that are wider than a narrow screen: each scrolls in a box of its own.

The box knows how wide its picture was drawn; the style sheet lets the picture be no smaller than
can be read. Where a box scrolls, `wide.js` makes it a stop for the keyboard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image


def give_room(app: Any, page: nodes.document) -> None:
    """Put each picture into a box, save those within a line of text; captions stay outside."""
    for image in list(page.findall(nodes.image)):
        drawn_in_pixels = image["uri"].endswith((".png", ".jpg"))
        if isinstance(image.parent, nodes.TextElement) or not drawn_in_pixels:
            continue
        with Image.open(Path(app.srcdir) / image["uri"]) as picture:
            box = f'<div class="siamcam-picture" style="--drawn: {picture.width}px">'
        opened, closed = (nodes.raw("", html, format="html") for html in (box, "</div>"))
        image.parent.replace(image, [opened, image, closed])


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, after it has found the files of the pictures."""
    app.connect("doctree-read", give_room, priority=900)
    app.add_js_file("wide.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
