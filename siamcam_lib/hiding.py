"""Pictures with a part hidden: what can a network still judge, and what did it never need?

Taught in the case study on skin cancer. A heatmap says where evidence is thought to lie; a set of
pictures without that place says what can be judged when it is gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from siamcam_lib.datasets import ImageSet
from siamcam_lib.datasets.imageset import Source
from siamcam_lib.errors import DataError
from siamcam_lib.identity import identity

Change = Callable[[Image.Image, dict[str, np.ndarray]], Image.Image]
"""A picture and the masks of its parts → the picture changed, of the same size."""


@lru_cache(maxsize=32)  # all pictures of a set tend to have one size
def centre(size: tuple[int, int], area: float) -> np.ndarray:
    """The middle of a picture of `size` (width, height): an ellipse of that share of the area.

    Where the ellipse would leave the picture its corners are left over, so that the share holds
    for every `area`.

    Returns:
        bool (height, width), read-only.

    Raises:
        DataError: if `area` is not a share in [0, 1].

    Example:
        >>> float(centre((40, 20), 0.5).mean())
        0.5
    """
    if not 0 <= area <= 1:
        raise DataError(f"area is a share in [0, 1], not {area!r}.")
    width, height = size
    x, y = ((np.arange(n) + 0.5) / n - 0.5 for n in size)
    far = np.hypot(x[None, :], y[:, None]).ravel()
    mask = np.zeros(width * height, bool)
    mask[np.argsort(far, kind="stable")[: round(area * mask.size)]] = True
    shaped = mask.reshape(height, width)
    shaped.flags.writeable = False
    return shaped


def hidden(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """A picture with all of `mask` painted in one colour: the mean of what stays visible.

    The colour says nothing about what is hidden. Where everything is hidden it is a medium grey.

    Args:
        picture: RGB.
        mask: bool (H, W), true where the picture is hidden.

    Raises:
        DataError: if the mask has another size than the picture.

    Example:
        >>> from PIL import Image
        >>> white = Image.new("RGB", (4, 4), "white")
        >>> hidden(white, np.ones((4, 4), bool)).getpixel((0, 0))
        (128, 128, 128)
    """
    pixels, mask = np.array(picture.convert("RGB")), np.asarray(mask, bool)
    if mask.shape != pixels.shape[:2]:
        raise DataError(
            f"The mask is {mask.shape}, the picture (height, width) {pixels.shape[:2]}; they must "
            "agree."
        )
    seen = pixels[~mask]
    pixels[mask] = np.round(seen.mean(axis=0)) if len(seen) else 128
    return Image.fromarray(pixels)


def changed(images: ImageSet, change: Change, name: str | None = None) -> ImageSet:
    """The same images with the same labels, groups and masks, each picture as `change` leaves it.

    Pictures are changed when they are looked at. Features of changed pictures are cached under the
    code of `change` and the values bound to it, as `siamcam_lib.identity` tells them.

    Args:
        images: n images.
        change: Gets the picture and its masks, and gives a picture of the same size.
        name: Of the new set.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/lesions", n=10)
        >>> bare = changed(images, lambda picture, masks: hidden(picture, masks["deciding"]))
        >>> len(bare), bare.image(0).size
        (10, (224, 224))
    """
    told = json.dumps(identity(change), sort_keys=True)
    source = _Changed(images.source, change, told)
    return replace(images, name=name or f"{images.name}, changed", source=source)


@dataclass(frozen=True)
class _Changed:
    """A source whose pictures are changed, each in the same way."""

    whole: Source
    change: Change
    told: str

    @property
    def origin(self) -> str:
        return self.whole.origin

    def image(self, item: str) -> Image.Image:
        picture = self.whole.image(item)
        found = self.change(picture, self.whole.masks(item))
        if not isinstance(found, Image.Image) or found.size != picture.size:
            raise DataError(
                "A change gives a PIL picture of the same size; otherwise the masks no longer fit."
            )
        return found

    def masks(self, item: str) -> dict[str, np.ndarray]:
        return self.whole.masks(item)

    def digest(self, item: str) -> str:
        return hashlib.sha256(f"{self.whole.digest(item)} {self.told}".encode()).hexdigest()
