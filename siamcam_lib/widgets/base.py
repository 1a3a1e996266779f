"""What every explorer is made of: a view that draws, controls linked to it, a still picture.

The controls are ipywidgets, the links are `jslink`s, and the view is one ES module without
dependencies; so an explorer answers on a built page, in a plain file and in JupyterLab alike.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Callable, Mapping
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib
import numpy as np
import traitlets
from PIL import Image

from siamcam_lib.errors import GalleryError
from siamcam_lib.files import shown, whole_file
from siamcam_lib.plots import HEAT

STATE_LIMIT = 2_900_000
"""Most bytes of data of one explorer: with its code it stays within 3 MB of a page."""
PICTURE_SIDE, PICTURE_QUALITY = 224, 75


def source(*names: str) -> str:
    """Files that lie beside this one, joined: a view's module and those whose functions it uses."""
    return "\n".join(files(__package__).joinpath(name).read_text("utf-8") for name in names)


class View(anywidget.AnyWidget):
    """The half of an explorer that draws; a subclass adds `_esm` and the traits it listens to.

    Attributes:
        data: All that never changes, as JSON: numbers, words, arrays and pictures.
    """

    _css = source("explorer.css")
    data = traitlets.Dict().tag(sync=True)


def packed(values: Any, kind: str) -> dict[str, str]:
    """An array as it travels in `View.data`: base64 of its bytes, read by ``unpack`` in base.js.

    Base64 text is what a page makes of binary traits anyway, and it also fits a plain file.

    Args:
        values: Anything that becomes an array.
        kind: ``"uint8"``, ``"int16"``, ``"uint16"``, ``"float16"``, ``"float32"`` or
            ``"float64"``.

    Example:
        >>> packed([0.5, 1.0], "float16")
        {'kind': 'float16', 'data': 'ADgAPA=='}
    """
    array = np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<"))
    return {"kind": kind, "data": base64.b64encode(array.tobytes()).decode()}


def picture(image: Image.Image, side: int = PICTURE_SIDE) -> dict[str, Any]:
    """A picture as it travels: a JPEG whose longer side has at most `side` pixels.

    Example:
        >>> small = picture(Image.new("RGB", (448, 224)))
        >>> small["width"], small["height"], small["url"][:23]
        (224, 112, 'data:image/jpeg;base64,')
    """
    small, buffer = image.copy(), BytesIO()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=PICTURE_QUALITY, optimize=True)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"width": small.width, "height": small.height, "url": url}


def heat_colours() -> dict[str, str]:
    """The book's colour map of heat, 256 colours (red, green, blue), as a `packed` array."""
    colours = matplotlib.colormaps[HEAT](np.arange(256), bytes=True)
    return packed(colours[:, :3], "uint8")


def size(data: Any) -> int:
    """Bytes that `data` takes in a page."""
    return len(json.dumps(data))


def slider_through(value: float, step: float = 0.01, **options: Any) -> ipywidgets.FloatSlider:
    """A slider strictly between 0 and 1, one of whose steps is `value` itself.

    Browsers round the value of a slider to its steps; a calibrated threshold must stay what it is.
    From a `value` that lies outside, the slider begins or ends there.

    Example:
        >>> slider = slider_through(0.391415)
        >>> round(slider.min, 6), slider.value, round(slider.max, 6)
        (0.001415, 0.391415, 0.991415)
    """
    below, above = (max(0, math.ceil(room / step - 1e-9) - 1) for room in (value, 1 - value))
    # a little room above, or rounding keeps the browser from the last step
    low, high = value - step * below, value + step * (above + 1e-5)
    return ipywidgets.FloatSlider(value, min=low, max=high, step=step, **options)


class Explorer(ipywidgets.VBox):
    """A view under the controls that are linked to its traits.

    Where no script may run, in a notebook that is not trusted or in print, a still picture stands
    in its place.

    Args:
        view: Draws.
        controls: For each trait of the view that the reader may change, the control that does so;
            of a choice the number is linked, of everything else the value.
        about: One sentence: what is shown.
        still: Makes the still picture, a PNG.
    """

    def __init__(
        self,
        view: View,
        controls: Mapping[str, ipywidgets.DOMWidget],
        about: str,
        still: Callable[[], bytes],
    ) -> None:
        for trait, control in controls.items():
            setattr(control, linked := _linked(control), getattr(view, trait))
            ipywidgets.jslink((control, linked), (view, trait))
        panel = ipywidgets.HBox(list(controls.values()))
        super().__init__([panel.add_class("siamcam-controls"), view])
        self.add_class("siamcam-explorer")
        self.view, self.controls, self.about, self.still = view, dict(controls), about, still

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.about!r})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data = super()._repr_mimebundle_(**options)
        if not data:
            return data
        still = base64.b64encode(self.still()).decode()
        return data | {"image/png": still}, {"image/png": {"alt": self.about}}

    def to_html(
        self,
        path: str | Path,
        title: str | None = None,
        models: str = "",
        files: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Write the explorer as one file that needs nothing else: no server, kernel or network.

        Args:
            path: Of the file, which is written whole or not at all.
            title: Of the page.
            models: The script that announces the models it can run; see `siamcam_lib.widgets.own`.
            files: Their files, by name.

        Raises:
            GalleryError: if the file cannot be written.
        """
        path = Path(path)
        page = _page(self, title or self.about, models, files or {})
        try:
            with whole_file(path) as temporary:
                temporary.write_text(page, encoding="utf-8")
        except OSError as error:
            raise GalleryError(
                f"The explorer cannot be written to {path} ({error}); choose another place."
            ) from error
        return path


def _linked(control: ipywidgets.DOMWidget) -> str:
    return "index" if control.has_trait("index") else "value"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
script-src 'unsafe-inline'{running}; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="siamcam-page">
<main class="siamcam-explorer">
<h1>{title}</h1>
<form class="siamcam-controls"></form>
<div class="siamcam-view"></div>
<noscript>This page computes its pictures itself; allow it to run its script.</noscript>
</main>
<script type="application/json" id="siamcam-state">{state}</script>
{models}
<script type="module">
{script}
</script>
</body>
</html>
"""


def _page(explorer: Explorer, title: str, models: str, files: Mapping[str, bytes]) -> str:
    """The explorer as HTML: the very module of the view, plain controls, and a model in little."""
    view = explorer.view
    traits = {name: getattr(view, name) for name in ("data", *explorer.controls)}
    controls = [_plain(trait, control) for trait, control in explorer.controls.items()]
    inside = f"<script>\n{models}</script>\n" if models else ""
    for name, data in files.items():
        text = base64.b64encode(data).decode()
        inside += f'<script type="text/plain" id="siamcam-{name}">{text}</script>\n'
    state = json.dumps({"traits": traits, "controls": controls}, ensure_ascii=True)
    return _PAGE.format(
        title=html.escape(shown(title)),
        style=view._css,
        state=state.replace("<", "\\u003c"),  # no name may close the script element
        models=inside,
        running=" blob: 'wasm-unsafe-eval'; worker-src blob:" if models else "",
        script=view._esm + source("standalone.js"),
    )


def _plain(trait: str, control: ipywidgets.DOMWidget) -> dict[str, Any]:
    """A control as standalone.js makes it again."""
    known: dict[str, Any] = {"trait": trait, "label": control.description}
    if control.has_trait("index"):
        kind = "buttons" if isinstance(control, ipywidgets.ToggleButtons) else "menu"
        return known | {"kind": kind, "options": list(control._options_labels)}
    limits = {name: getattr(control, name) for name in ("min", "max", "step")}
    return known | {"kind": "slider"} | limits
