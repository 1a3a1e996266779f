"""The crop explorer: from a heatmap to a box to the cropped picture.

Used in the chapter on cropping. The maps travel at feature resolution; the page stretches them and
finds the box as `siamcam_lib.cropping.box` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
import traitlets
from PIL import Image

from siamcam_lib.cropping import box
from siamcam_lib.datasets import ImageSet
from siamcam_lib.datasets.images import as_image
from siamcam_lib.errors import DataError, ExplanationError
from siamcam_lib.explanation import stretch
from siamcam_lib.files import shown
from siamcam_lib.plots import OPACITY, SIMILAR, WIDTH, overlay
from siamcam_lib.widgets.base import (
    STATE_LIMIT,
    Explorer,
    View,
    heat_colours,
    packed,
    picture,
    size,
    slider_through,
    source,
)

WIDEST = 0.5
"""Largest margin that can be chosen."""


class CropView(View):
    """A picture, its heatmap, the regions above a threshold, and what the box leaves.

    Attributes:
        image: Which picture.
        threshold: What belongs to a region, as a share of the heatmap's maximum.
        margin: By what share of its own size the box is widened on each side.
    """

    _esm = source("base.js", "crop.js")
    image = traitlets.Int(0).tag(sync=True)
    threshold = traitlets.Float(0.5).tag(sync=True)
    margin = traitlets.Float(0.0).tag(sync=True)


def crop_explorer(
    images: ImageSet | Sequence[Any],
    heatmaps: Sequence[np.ndarray],
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.5,
    margin: float = 0.0,
) -> Explorer:
    """Choose threshold and margin, and see the box of each picture and what it leaves.

    Args:
        images: An `ImageSet`, or images as in `sc.explain`.
        heatmaps: For each its raw map at feature resolution, (h, w), for example
            ``gallery.explain(i, j).raw[0]``, or the mean of several; what is negative is cut off
            after the map has been stretched, as `cropping.find_boxes` does.
        names: What each image is called; by default its class and number.
        threshold: To begin with, in (0, 1).
        margin: To begin with, in [0, 0.5].

    Raises:
        DataError: if there is not one heatmap and one name for each image, at least one, or the
            images do not fit into a page.
        ExplanationError: if a heatmap is not (h, w) or not finite, or a setting is out of range.
        ImageError: if one is no image.

    Example:
        >>> crop_explorer([Image.new("RGB", (60, 40))], [np.eye(3)])
        Explorer('Crop explorer, 1 picture')
    """
    if not 0 < threshold < 1 or not 0 <= margin <= WIDEST:
        raise ExplanationError(
            f"threshold lies strictly between 0 and 1 and margin in [0, {WIDEST}]; {threshold!r} "
            f"and {margin!r} were given."
        )
    count, called = len(images), _names(images, names)
    if not count or not count == len(heatmaps) == len(called):
        raise DataError(
            f"{count} images, {len(heatmaps)} heatmaps and {len(called)} names were given; give "
            "one of each for every image, at least one."
        )
    maps = [_checked(heatmap) for heatmap in heatmaps]
    shown = [
        {
            "name": name, "picture": picture(_image(images, k)),
            "map": packed(raw, "float32"), "shape": list(raw.shape),
        }
        for k, (name, raw) in enumerate(zip(called, maps, strict=True))
    ]  # fmt: skip
    if (total := size(shown)) > STATE_LIMIT:
        raise DataError(
            f"{count} images take {total / 1e6:.1f} MB, a page holds {STATE_LIMIT / 1e6:.1f} MB; "
            f"give about {count * STATE_LIMIT // total} of them."
        )
    fixed = {"images": shown, "colours": heat_colours(), "opacity": OPACITY}
    view = CropView(data=fixed, threshold=float(threshold), margin=float(margin))
    slider: dict[str, Any] = {"step": 0.01, "readout_format": ".2f"}
    controls = {
        "image": ipywidgets.Dropdown(
            options=[(name, k) for k, name in enumerate(called)], description="picture"
        ),
        "threshold": slider_through(view.threshold, description="threshold", **slider),
        "margin": ipywidgets.FloatSlider(min=0, max=WIDEST, description="margin", **slider),
    }

    def still() -> bytes:
        whole = _image(images, view.image)
        return _still(whole, maps[view.image], view.threshold, view.margin)

    about = f"Crop explorer, {count} picture{'s' * (count > 1)}"
    return Explorer(view, controls, about, still)


def _image(images: ImageSet | Sequence[Any], k: int) -> Image.Image:
    return images.image(k) if isinstance(images, ImageSet) else as_image(images[k])


def _names(images: ImageSet | Sequence[Any], names: Sequence[str] | None) -> list[str]:
    if names is not None:
        return [shown(name) for name in names]
    if isinstance(images, ImageSet):
        return [f"{images.classes[label]} {k}" for k, label in enumerate(images.labels)]
    return [f"image {k}" for k in range(len(images))]


def _checked(heatmap: Any) -> np.ndarray:
    raw = np.asarray(heatmap, dtype=np.float32)
    if raw.ndim != 2 or not raw.size or not np.isfinite(raw).all():
        raise ExplanationError(
            f"A raw heatmap is (h, w), of finite numbers; {raw.shape} was given. Take "
            "explanation.raw[0], for example."
        )
    return raw


def _still(image: Image.Image, raw: np.ndarray, threshold: float, margin: float) -> bytes:
    heat = np.maximum(stretch(torch.from_numpy(raw), image.size), 0)
    found = box(heat, threshold, margin)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, WIDTH / 2), layout="constrained")
    overlay(axes[0], image, heat, float(heat.max()))
    frame = plt.Rectangle(found[:2], *found.size, fill=False, color=SIMILAR, linewidth=2)
    axes[0].add_patch(frame)
    axes[0].set_title(f"threshold {threshold:.2f}, margin {margin:.2f}", fontsize=10)
    axes[1].imshow(image.crop(found))
    axes[1].set(xticks=[], yticks=[])
    axes[1].set_title(f"cropped: {found.size[0]} × {found.size[1]}", fontsize=10)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
