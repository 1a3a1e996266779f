"""The pair explorer: any two images of a gallery, their score and why, in the reader's browser.

Used in chapter 4 (Grad-CAM maths) and in the case studies. Of each image only its projected map P,
two bytes a value, and its embedding travel; every map of every ordered pair is computed from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import GalleryError
from siamcam_lib.files import shown
from siamcam_lib.gallery import Gallery
from siamcam_lib.plots import OPACITY
from siamcam_lib.portable import bundle, comparison, offer
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
from siamcam_lib.widgets.own import script

MOST = 60
"""Images that are shown where nothing is said."""
MAPS = ("factual", "counterfactual", "shared", "self")
SCALES = ("one for both", "each its own")


class PairView(View):
    """Two images of a gallery side by side, each with its map.

    Attributes:
        a: Number of the left image among those shown.
        b: Number of the right one.
        map: Which of `MAPS`.
        scale: Which of `SCALES`.
        threshold: Dissimilarity from which a pair is judged dissimilar.
        opacity: Of the hottest place of a map, in [0, 1].
    """

    _esm = source("base.js", "pair.js")
    a = traitlets.Int(0).tag(sync=True)
    b = traitlets.Int(0).tag(sync=True)
    map = traitlets.Int(0).tag(sync=True)
    scale = traitlets.Int(0).tag(sync=True)
    threshold = traitlets.Float(0.5).tag(sync=True)
    opacity = traitlets.Float(OPACITY).tag(sync=True)


def pair_explorer(
    gallery: Gallery,
    *,
    indices: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    pair: tuple[int, int] | None = None,
) -> Explorer:
    """Show any two images of a gallery, how alike they are, and why.

    Args:
        gallery: With its images.
        indices: Which images can be chosen, by their numbers in the gallery. If not given: all,
            or up to 60 of them spread evenly over the classes; the explorer says how many.
        names: What each image of the gallery is called; by default its number and class.
        pair: The two images shown first, by their numbers in the gallery.

    Raises:
        GalleryError: if there are fewer than two images, a number or name is wrong, the images do
            not fit into a page, or the gallery's comparison cannot be computed there.

    Example:
        >>> import siamcam_lib as sc
        >>> net = sc.SiameseNet(image_size=96)
        >>> gal = sc.Gallery.embed(net, sc.datasets.load("scenes/flowers", n=10), progress=False)
        >>> pair_explorer(gal, pair=(3, 7))
        Explorer('Pair explorer, 10 of 10 images')
    """
    how = comparison(gallery._table["settings"])
    called = _names(gallery, names)
    wanted = [gallery._check(i) for i in pair or ()]
    if indices is None:
        shown, images = _fitting(gallery, called, wanted)
    else:
        shown = list(dict.fromkeys(gallery._check(i) for i in indices))
        images = [_image(gallery, i, called[i]) for i in shown]
        _check_size(images)
    if len(shown) < 2 or len(wanted) not in (0, 2) or not set(wanted) <= set(shown):
        raise GalleryError(
            f"The explorer shows pairs of at least two images; those chosen are {shown[:8]}, the "
            f"first pair is {pair}. Give indices that hold both, or leave them out."
        )
    first = [shown.index(i) for i in wanted] or [0, 1]
    about = f"Pair explorer, {len(shown)} of {len(gallery)} images"
    fixed = {
        "how": how, "shape": list(gallery._table["shape"][1:]), "digest": gallery._table["digest"],
        "note": f"{len(shown)} of the gallery’s {len(gallery)} images; its own threshold is "
        f"{gallery.threshold:.2f}.",
        "colours": heat_colours(), "images": images,
    }  # fmt: skip
    view = PairView(data=fixed, a=first[0], b=first[1], threshold=gallery.threshold)
    options = [(called[i], k) for k, i in enumerate(shown)]
    slider: dict[str, Any] = {"readout_format": ".2f", "step": 0.01}
    controls = {
        "a": ipywidgets.Dropdown(options=options, description="image A"),
        "b": ipywidgets.Dropdown(options=options, description="image B"),
        "map": ipywidgets.ToggleButtons(options=MAPS, description="map"),
        "scale": ipywidgets.ToggleButtons(options=SCALES, description="colour scale"),
        "threshold": slider_through(gallery.threshold, description="threshold", **slider),
        "opacity": ipywidgets.FloatSlider(min=0, max=1, description="opacity", **slider),
    }

    def still() -> bytes:
        ex = gallery.explain(shown[view.a], shown[view.b], threshold=view.threshold)
        return ex._repr_png_()

    return Explorer(view, controls, about, still)


def to_html(
    gallery: Gallery,
    path: str | Path,
    *,
    title: str | None = None,
    model: bool = False,
    **options: Any,
) -> Path:
    """Write the pair explorer as one file to send to a colleague; it needs no network.

    Args:
        gallery: With its images.
        path: Of the file, which is written whole or not at all.
        title: Of the page.
        model: Put the gallery's network into the file, some 20 MB: whoever opens it can compare
            pictures of their own, which stay in their browser. The runtime for it is fetched once
            from npm.
        options: As in `pair_explorer`.

    Raises:
        BookError: if the runtime for a model is neither kept nor to be had.
        GalleryError: as in `pair_explorer`, if the file cannot be written, or for a model if the
            gallery was opened without its network.
        ModelError: if the network cannot be exported.
    """
    explorer = pair_explorer(gallery, **options)
    if not model:
        return explorer.to_html(path, title)
    if gallery._seeing is None:
        raise GalleryError(
            "To put its model into the page the gallery needs its network: "
            "Gallery.open(folder, net, images)."
        )
    manifest, files = bundle([offer(gallery._seeing, "this gallery’s model")])
    return explorer.to_html(path, title, script(manifest), files)


def _images(gallery: Gallery) -> ImageSet | None:
    held = getattr(gallery._images, "_images", None)
    return held if isinstance(held, ImageSet) else None


def _names(gallery: Gallery, names: Sequence[str] | None) -> list[str]:
    if names is not None:
        if len(names) != len(gallery):
            raise GalleryError(
                f"{len(names)} names were given for a gallery of {len(gallery)} images; give one "
                "for each image of the gallery, or none."
            )
        return [shown(name) for name in names]
    images = _images(gallery)
    if images is None:
        return [f"image {i}" for i in range(len(gallery))]
    return [shown(f"{images.classes[label]} {i}") for i, label in enumerate(images.labels)]


def _image(gallery: Gallery, i: int, name: str) -> dict[str, Any]:
    """All that travels of one image; units that are silent everywhere in it are left out."""
    maps = gallery.maps(i, i + 1)[0].numpy()
    units = np.flatnonzero(maps.any(axis=(1, 2)))
    # Even steps, not half precision: a map is a sum in which large values cancel.
    step = float(np.abs(maps).max()) / 32767
    return {
        "name": name,
        "picture": picture(gallery.image(i)),
        "embedding": packed(gallery.embeddings[i], "float32"),
        "units": packed(units, "uint16"),
        "maps": packed(np.rint(maps[units] / (step or 1)), "int16"),
        "step": step,
    }


def _fitting(
    gallery: Gallery, called: list[str], wanted: list[int]
) -> tuple[list[int], list[dict[str, Any]]]:
    """As many images, at most `MOST`, as fit into a page, and what travels of them."""
    made: dict[int, dict[str, Any]] = {}
    count = min(MOST, len(gallery))
    while True:
        shown = _spread(gallery, count, wanted)
        for i in shown:
            made[i] = made.get(i) or _image(gallery, i, called[i])
        images = [made[i] for i in shown]
        total = size(images)
        if total <= STATE_LIMIT or count <= 2:
            _check_size(images)
            return shown, images
        count = max(2, min(count - 1, count * STATE_LIMIT // total))


def _spread(gallery: Gallery, count: int, wanted: list[int]) -> list[int]:
    """`count` numbers in order: those wanted, the others evenly over classes and within each."""
    images = _images(gallery)
    labels = np.zeros(len(gallery), int) if images is None else images.labels
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    ranks = [(rank, k) for k, members in enumerate(classes) for rank in range(len(members))]
    taken = [k for _, k in sorted(ranks)[:count]]  # one of each class in turn
    quotas = np.bincount(taken, minlength=len(classes))
    even = [
        members[np.linspace(0, len(members) - 1, quota).astype(int)]
        for members, quota in zip(classes, quotas, strict=True)
    ]
    others = [i for i in np.concatenate(even).tolist() if i not in wanted]
    return sorted([*set(wanted), *others][:count])


def _check_size(images: list[dict[str, Any]]) -> None:
    total = size(images)
    if total > STATE_LIMIT:
        fit = len(images) * STATE_LIMIT // total
        raise GalleryError(
            f"{len(images)} images of this gallery take {total / 1e6:.1f} MB, a page holds "
            f"{STATE_LIMIT / 1e6:.1f} MB of them. Choose about {fit}: "
            f"gallery.widget(indices=[...])."
        )
