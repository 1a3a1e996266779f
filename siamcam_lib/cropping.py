"""From a heatmap to a box, and from boxes to a data set of cropped images.

Taught in the chapter on cropping, after section 4.4 of Livieris et al. (2023,
doi:10.3390/jimaging9100224): train on what the network itself found to matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from siamcam_lib import gradcam
from siamcam_lib.datasets import ImageSet
from siamcam_lib.datasets.imageset import Source
from siamcam_lib.errors import DataError, ExplanationError
from siamcam_lib.explaining import check_closed_form, directions
from siamcam_lib.explanation import stretch
from siamcam_lib.features import Looks
from siamcam_lib.gallery import Gallery
from siamcam_lib.pairs import Split

AT_ONCE = 256  # images of a gallery looked at together


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
    regions, _ = ndimage.label(heat >= threshold * heat.max(), np.ones((3, 3)))
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    rows, columns = ndimage.find_objects(regions, largest)[-1]
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
    maps = mean_maps(gallery, partners, method=method)
    return [
        box(heatmap(raw, size), threshold, margin)
        for raw, size in zip(maps, _sizes(gallery), strict=True)
    ]


def heatmap(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The positive half of a signed map (h, w), at an image's size (width, height): (H, W).

    Example:
        >>> heatmap(np.array([[1.0, -1.0]], np.float32), (4, 1)).round(2).tolist()
        [[1.0, 0.5, 0.0, 0.0]]
    """
    return np.maximum(stretch(torch.from_numpy(np.asarray(raw, np.float32)), size), 0)


def mean_maps(gallery: Gallery, partners: np.ndarray, *, method: str = "gradcam") -> np.ndarray:
    r"""The signed map of each image of a gallery, averaged over its partners.

    Every map is a product of the image's own projected map with a direction, so the mean of k maps
    is the map along the mean of k directions:
    :math:`\tfrac1k \sum_j \langle P_i(p), v_{ij} \rangle = \langle P_i(p), \bar v_i \rangle`.

    Args:
        gallery: n images.
        partners: (n, k) indices into the gallery.
        method: As in `sc.explain`.

    Returns:
        (n, h, w) float32; positive speaks for similarity.

    Raises:
        ExplanationError: if `partners` does not have a row for each image, or holds what is no
            index, or the method is unknown.
    """
    check_closed_form(method)
    partners = np.ascontiguousarray(partners)
    if partners.ndim != 2 or len(partners) != len(gallery) or not partners.shape[1]:
        raise ExplanationError(
            f"partners must be ({len(gallery)}, k), a row for each image; {partners.shape} was "
            "given."
        )
    if partners.min() < 0 or partners.max() >= len(gallery):
        raise ExplanationError(f"partners are numbers of images, from 0 to {len(gallery) - 1}.")
    everyone = torch.from_numpy(gallery.embeddings)
    found, k = [], partners.shape[1]
    for start in range(0, len(gallery), AT_ONCE):
        others = torch.from_numpy(partners[start : start + AT_ONCE])
        own = everyone[start : start + AT_ONCE]
        e1, e2 = own.double().repeat_interleave(k, 0), everyone[others.flatten()].double()
        v, _ = directions(method, gallery.compare(e1, e2), e1, e2, gallery.unit)
        mean = v.view(len(own), k, -1).mean(dim=1).float()
        seen = gradcam.Projected(gallery.maps(start, start + len(own)), own)
        found.append(gradcam.along(seen, mean))
    return torch.cat(found).numpy()


def nearest_partners(
    gallery: Gallery, among: np.ndarray, k: int = 5, *, labels: np.ndarray | None = None
) -> np.ndarray:
    """The k images most like each image, chosen from `among`, without looking at any label.

    Args:
        gallery: n images.
        among: Indices that may be chosen: those of the training part.
        k: How many.
        labels: (n,) classes; with them only images of its own class are chosen for each image.
            For a test image that is a leak; it is there to be measured.

    Returns:
        (n, k) indices; no image is its own partner.

    Raises:
        ExplanationError: if fewer than k + 1 images may be chosen, of each class where `labels` are
            given.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=20)
        >>> seen = Gallery.embed(sc.SiameseNet(image_size=96), images, progress=False)
        >>> nearest_partners(seen, np.arange(15), k=3).shape
        (20, 3)
    """
    among = np.asarray(among)
    if labels is not None:
        return _by_class(gallery, among, k, np.asarray(labels))
    if len(among) <= k or k < 1:
        raise ExplanationError(
            f"{k} partners cannot be chosen from {len(among)} images; choose at least one, and "
            "fewer than there are."
        )
    return _nearest(gallery, np.arange(len(gallery)), among, k)


def _by_class(gallery: Gallery, among: np.ndarray, k: int, labels: np.ndarray) -> np.ndarray:
    """`nearest_partners` of each class on its own."""
    if labels.shape != (len(gallery),):
        raise ExplanationError(f"{len(gallery)} images need as many labels, not {labels.shape}.")
    partners = np.empty((len(gallery), max(k, 0)), np.int64)
    for label in np.unique(labels):
        alike = among[labels[among] == label]
        if len(alike) <= k or k < 1:
            raise ExplanationError(
                f"{k} partners cannot be chosen from {len(alike)} images of class {label}; choose "
                "at least one, and fewer than there are."
            )
        members = np.flatnonzero(labels == label)
        partners[members] = _nearest(gallery, members, alike, k)
    return partners


def _nearest(gallery: Gallery, members: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    """The k of `among` nearest to each of `members`, (m, k)."""
    everyone = torch.from_numpy(gallery.embeddings)
    if gallery.unit:
        everyone = torch.nn.functional.normalize(everyone, dim=-1)
    rows = []
    for start in range(0, len(members), AT_ONCE):
        part = members[start : start + AT_ONCE]
        d = torch.cdist(everyone[part], everyone[among]).numpy()
        d[part[:, None] == among[None, :]] = np.inf
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


def whole(split: Split) -> ImageSet:
    """All pictures of a split in one set: training, then validation, then test part.

    A gallery of them holds what `find_boxes` needs; `parts` gives the split back.

    Example:
        >>> import siamcam_lib as sc
        >>> split = sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
        >>> len(whole(split)), parts(split).test.stop
        (100, 100)
    """
    three = (split.train, split.val, split.test)
    return replace(
        split.train,
        items=tuple(item for part in three for item in part.items),
        labels=np.concatenate([part.labels for part in three]),
        groups=np.concatenate([part.groups for part in three]),
    )


class Parts(NamedTuple):
    """Where the three parts of a split lie in `whole`."""

    train: slice
    val: slice
    test: slice


def parts(split: Split) -> Parts:
    """Where training, validation and test pictures lie in ``whole(split)``."""
    ends = np.cumsum([0, len(split.train), len(split.val), len(split.test)]).tolist()
    return Parts(*(slice(*end) for end in zip(ends, ends[1:], strict=False)))


@dataclass(frozen=True)
class SplitGallery:
    """All pictures of a split as one trained network sees them: what boxes are found with.

    Attributes:
        images: Training, validation and test pictures, in this order.
        parts: Where each part lies in `images`.
        gallery: Of `images`.
        sizes: Width and height of each picture.

    Example:
        >>> import siamcam_lib as sc
        >>> split = sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
        >>> seen = SplitGallery.embed(sc.SiameseNet(image_size=96), split)
        >>> len(find_boxes(seen.gallery, seen.partners(k=3)))
        100
    """

    images: ImageSet
    parts: Parts
    gallery: Gallery
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def embed(
        cls, net: Any, split: Split, *, looks: Looks | None = None, progress: bool = False
    ) -> SplitGallery:
        """Look at every picture of the three parts once; `net`, `looks` as in `Gallery.embed`."""
        images = whole(split)
        gallery = Gallery.embed(net, images, looks=looks, progress=progress)
        return cls(images, parts(split), gallery, _sizes(gallery))

    def partners(self, k: int = 5, *, by_label: bool = False) -> np.ndarray:
        """For every picture the k nearest of the training part; see `nearest_partners`.

        Args:
            k: How many.
            by_label: Only those of the picture's own class: for test pictures a leak.
        """
        among = np.arange(self.parts.train.stop)
        labels = self.images.labels if by_label else None
        return nearest_partners(self.gallery, among, k, labels=labels)

    def kept(self, boxes: Sequence[Box]) -> np.ndarray:
        """Share of each picture that its box keeps, (n,) in (0, 1]."""
        areas = [found.size[0] * found.size[1] for found in boxes]
        return np.array(areas) / np.prod(self.sizes, axis=1)


def cropped_split(split: Split, boxes: Sequence[Box]) -> Split:
    """The same split with each picture cut to its box; boxes in the order of `whole`.

    Raises:
        DataError: if there is not one box for each picture of the three parts.
    """
    count = len(whole(split))
    if len(boxes) != count:
        raise DataError(
            f"{count} images and {len(boxes)} boxes were given; give one for each image."
        )
    three = zip((split.train, split.val, split.test), parts(split), strict=True)
    return Split(*(cropped(part, boxes[where]) for part, where in three))


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


def _sizes(gallery: Gallery) -> tuple[tuple[int, int], ...]:
    """Width and height of each picture, without reading any."""
    return tuple(map(tuple, gallery._rows.read("size", 0, len(gallery)).tolist()))


def _root(area: float) -> float:
    if not 0 < area <= 1:
        raise ExplanationError(f"area is a share in (0, 1], not {area!r}.")
    return area**0.5
