"""From a heatmap to a box, and from boxes to a data set of cropped images.

Taught in the chapter on cropping, after section 4.4 of Livieris et al. (2023,
doi:10.3390/jimaging9100224): train on what the network itself found to matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from siamcam_lib.datasets import ImageSet
from siamcam_lib.datasets.imageset import Source
from siamcam_lib.errors import DataError, ExplanationError
from siamcam_lib.explain import stretch
from siamcam_lib.gallery import Gallery


class Box(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are the first outside, as in Pillow."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top


def box(heatmap: np.ndarray, threshold: float = 0.5, margin: float = 0.0) -> Box:
    """The rectangle around the largest connected region of a heatmap.

    Args:
        heatmap: (H, W), not negative.
        threshold: What belongs to a region, as a share of the heatmap's maximum, in (0, 1).
        margin: Widen the box on each side by this share of its own width and height; it never
            leaves the image.

    Returns:
        The box; the whole image for a blank heatmap, which points nowhere.

    Raises:
        ExplanationError: if the heatmap is not (H, W), negative or not finite, or a setting is out
            of range.

    Example:
        >>> heat = np.zeros((6, 8)); heat[2:4, 3:7] = 1; heat[5, 0] = 1
        >>> box(heat)
        Box(left=3, top=2, right=7, bottom=4)
    """
    heat = np.asarray(heatmap)
    if heat.ndim != 2 or not heat.size:
        raise ExplanationError(f"A heatmap is (H, W), not {heat.shape}.")
    if not np.isfinite(heat).all() or heat.min() < 0:
        raise ExplanationError("A heatmap holds finite numbers, none of them negative.")
    if not 0 < threshold < 1:
        raise ExplanationError(f"threshold lies strictly between 0 and 1, not at {threshold!r}.")
    if not 0 <= margin:
        raise ExplanationError(f"margin is not negative; {margin!r} was given.")
    height, width = heat.shape
    if not heat.any():
        return Box(0, 0, width, height)
    regions, count = ndimage.label(heat >= threshold * heat.max(), np.ones((3, 3)))
    sizes = ndimage.sum_labels(np.ones_like(heat), regions, np.arange(1, count + 1))
    rows, columns = ndimage.find_objects(regions)[int(np.argmax(sizes))]
    across = margin * (columns.stop - columns.start)
    down = margin * (rows.stop - rows.start)
    return Box(
        max(0, round(columns.start - across)), max(0, round(rows.start - down)),
        min(width, round(columns.stop + across)), min(height, round(rows.stop + down)),
    )  # fmt: skip


def find_boxes(
    gallery: Gallery,
    partners: np.ndarray,
    *,
    method: str = "gradcam",
    threshold: float = 0.5,
    margin: float = 0.0,
) -> list[Box]:
    """A box for each image of a gallery: where it resembles its partners.

    Args:
        gallery: Images seen by a trained network.
        partners: (n, k) indices into the gallery; the maps of the k pairs are averaged. Partners
            of the same class need the label of the image itself: for test images that is a leak.
            `nearest_partners` needs none.
        method: As in `sc.explain`.
        threshold: See `box`.
        margin: See `box`.

    Raises:
        ExplanationError: if `partners` does not have a row for each image.
    """
    partners = np.asarray(partners)
    if partners.ndim != 2 or len(partners) != len(gallery) or not partners.shape[1]:
        raise ExplanationError(
            f"partners must be ({len(gallery)}, k), a row for each image; {partners.shape} was "
            "given."
        )
    found = []
    for i, others in enumerate(partners):
        pairs = [gallery.explain(i, int(j), method=method) for j in others]
        for_similar = torch.from_numpy(np.mean([ex.raw[0] for ex in pairs], axis=0))
        heat = np.maximum(stretch(for_similar, pairs[0].factual[0].shape[::-1]), 0)
        found.append(box(heat, threshold, margin))
    return found


def nearest_partners(gallery: Gallery, among: np.ndarray, k: int = 5) -> np.ndarray:
    """The k images most like each image, chosen from `among`, without looking at any label.

    Args:
        gallery: n images.
        among: Indices that may be chosen: those of the training part.
        k: How many.

    Returns:
        (n, k) indices; no image is its own partner.

    Raises:
        ExplanationError: if fewer than k + 1 images may be chosen.
    """
    among = np.asarray(among)
    if len(among) <= k or k < 1:
        raise ExplanationError(
            f"{k} partners cannot be chosen from {len(among)} images; choose at least one, and "
            "fewer than there are."
        )
    chosen = torch.from_numpy(gallery.embeddings[among])
    rows = []
    for start in range(0, len(gallery), 256):
        part = torch.from_numpy(gallery.embeddings[start : start + 256])
        ends = (part, chosen)
        if gallery.unit:
            ends = tuple(torch.nn.functional.normalize(e, dim=-1) for e in ends)
        d = torch.cdist(*ends).numpy()
        own = np.arange(start, start + len(part))[:, None] == among[None, :]
        d[own] = np.inf
        rows.append(among[np.argsort(d, axis=1, kind="stable")[:, :k]])
    return np.concatenate(rows)


def centre_box(size: tuple[int, int], area: float) -> Box:
    """The middle of an image of `size` (width, height), `area` of it: a control for any box.

    Example:
        >>> centre_box((100, 40), 0.25)
        Box(left=25, top=10, right=75, bottom=30)
    """
    width, height = (max(1, round(side * _root(area))) for side in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return Box(left, top, left + width, top + height)


def random_box(size: tuple[int, int], area: float, random: np.random.Generator) -> Box:
    """A box of the same shape as `centre_box`, anywhere in the image: the other control."""
    width, height = centre_box(size, area).size
    left = int(random.integers(size[0] - width + 1))
    top = int(random.integers(size[1] - height + 1))
    return Box(left, top, left + width, top + height)


def cropped(images: ImageSet, boxes: Sequence[Box], name: str | None = None) -> ImageSet:
    """The same images with the same labels and groups, each cut to its box.

    Raises:
        DataError: if there is not one box for each image.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> cropped(images, [Box(0, 0, 50, 40)] * 10).image(0).size
        (50, 40)
    """
    if len(boxes) != len(images):
        raise DataError(
            f"{len(images)} images and {len(boxes)} boxes were given; give one for each image."
        )
    source = _Cropped(images.source, dict(zip(images.items, boxes, strict=True)))
    return replace(images, name=name or f"{images.name}, cropped", source=source)


@dataclass(frozen=True)
class _Cropped:
    """A source whose pictures are cut to a box each."""

    whole: Source
    boxes: dict[str, Box]

    @property
    def origin(self) -> str:
        return self.whole.origin

    def image(self, item: str) -> Image.Image:
        return self.whole.image(item).crop(self.boxes[item])

    def masks(self, item: str) -> dict[str, np.ndarray]:
        left, top, right, bottom = self.boxes[item]
        return {k: m[top:bottom, left:right] for k, m in self.whole.masks(item).items()}

    def digest(self, item: str) -> str:
        return hashlib.sha256(f"{self.whole.digest(item)} {self.boxes[item]}".encode()).hexdigest()


def _root(area: float) -> float:
    if not 0 < area <= 1:
        raise ExplanationError(f"area is a share in (0, 1], not {area!r}.")
    return area**0.5
