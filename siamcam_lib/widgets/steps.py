"""The step-by-step explorer: a Grad-CAM map forms, channel after channel, on both images of a pair.

Used in chapter 4 (Grad-CAM maths). Of each image travel its channels of largest weight, and the sum
of all others as one more; the page adds them up.
"""

from __future__ import annotations

from typing import Any, cast

import ipywidgets
import numpy as np
import torch
import traitlets

from siamcam_lib.datasets.images import as_image
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explanation import Explanation, explain
from siamcam_lib.plots import OPACITY
from siamcam_lib.widgets.base import (
    STATE_LIMIT,
    Explorer,
    View,
    heat_colours,
    packed,
    picture,
    size,
    source,
)

CHANNELS = 512
"""Channels of each image that are shown one by one where nothing is said."""
SUMS = ("signed sum", "after the ReLU")


class StepsView(View):
    """Channels of two images, and the sum of the first of them.

    Attributes:
        channels: How many are added up.
        sum: Which of `SUMS`.
    """

    _esm = source("base.js", "steps.js")
    channels = traitlets.Int(1).tag(sync=True)
    sum = traitlets.Int(0).tag(sync=True)


def steps_explorer(
    net: Any,
    a: Any,
    b: Any,
    *,
    channels: int = CHANNELS,
    layer: str | None = None,
    **options: Any,
) -> Explorer:
    """Add the channels of a pair one by one, the heaviest first, and watch the map form.

    Args:
        net: As in `sc.explain`.
        a: An image, as in `sc.explain`.
        b: Its partner.
        channels: How many are added one by one; the last step adds all others together. Those that
            are silent everywhere in an image add nothing to its map, and are left out.
        layer: As in `sc.explain`.
        options: As in `sc.explain`.

    Raises:
        ExplanationError: as `sc.explain`; or if `channels` is not positive, or more of them were
            asked for than fit into a page.
        ImageError: if an input is no image.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> steps_explorer(sc.SiameseNet(image_size=96), images.image(0), images.image(1))
        Explorer('Grad-CAM step by step, 1280 channels')
    """
    if not isinstance(channels, int) or channels < 1:
        raise ExplanationError(f"channels is a positive whole number, not {channels!r}.")
    seeing = as_explainable(net, layer, **options)
    images = [as_image(x) for x in (a, b)]
    ex = cast(Explanation, explain(seeing, *images))
    seen = seeing.see(images)
    compared = seeing.compare(seen.embedding[:1], seen.embedding[1:])
    weights = seen.weights(torch.arange(2), torch.cat([compared.v1, compared.v2])).numpy()
    maps = seen.maps.double().numpy()  # (2, K, h, w)
    count, shape = maps.shape[1], maps.shape[2:]
    fixed = {
        "sides": [
            _side(maps[i], weights[i], channels) | {"picture": picture(images[i])} for i in (0, 1)
        ],
        "shape": list(shape), "count": count, "colours": heat_colours(),
        "decision": ex.decision, "dissimilarity": ex.dissimilarity, "threshold": ex.threshold,
        "opacity": OPACITY,
    }  # fmt: skip
    if (total := size(fixed)) > STATE_LIMIT:
        raise ExplanationError(
            f"{channels} channels of {shape[0]} × {shape[1]} places take {total / 1e6:.1f} MB, a "
            f"page holds {STATE_LIMIT / 1e6:.1f} MB; show fewer: channels="
            f"{max(1, channels * STATE_LIMIT // total)}."
        )
    steps = max(len(side["weights"]) for side in fixed["sides"])
    view = StepsView(data=fixed, channels=1)
    controls = {
        "channels": ipywidgets.IntSlider(min=0, max=max(1, steps), step=1, description="channels"),
        "sum": ipywidgets.ToggleButtons(options=SUMS, description="map"),
    }
    return Explorer(view, controls, f"Grad-CAM step by step, {count} channels", ex._repr_png_)


def _side(maps: np.ndarray, weights: np.ndarray, most: int) -> dict[str, Any]:
    r"""What travels of one image: weights :math:`\alpha_k`, and the maps they multiply.

    Args:
        maps: A, (K, h, w).
        weights: :math:`\alpha`, (K,).
        most: Channels that keep a map of their own.
    """
    order = np.argsort(-np.abs(weights), kind="stable")
    order = order[maps[order].any(axis=(1, 2))]
    first, rest = order[:most], order[most:]
    parts, alphas = maps[first], weights[first]
    if len(rest):  # the sum of all others, as one more channel whose weight is 1
        others = np.tensordot(weights[rest], maps[rest], 1)
        parts, alphas = np.concatenate([parts, others[None]]), np.append(alphas, 1.0)
    peaks = np.abs(parts).max(axis=(1, 2))
    units = parts / np.where(peaks > 0, peaks, 1)[:, None, None]
    return {
        "channels": first.tolist(), "weights": alphas.tolist(), "peaks": peaks.tolist(),
        "active": len(order), "maps": packed(units, "float16"),
    }  # fmt: skip
