"""`ImageSet`: labelled images that are read only when asked for.

Taught in chapter 1 (pairs). Every data set of the book, drawn scenes, downloaded photographs or
a reader's own folder, is an `ImageSet`; whatever comes later knows images only in this form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from siamcam_lib.errors import DataError


class Source(Protocol):
    """Where the pixels come from; implemented by a folder of files and by the scene painter."""

    @property
    def origin(self) -> str:
        """``"photographs"``, ``"scenes"`` or ``"folder"``."""

    def image(self, item: str) -> Image.Image:
        """The picture called `item`, as 8-bit RGB."""

    def masks(self, item: str) -> dict[str, np.ndarray]:
        """Exact masks of the picture's parts, bool (H, W) each; empty where nothing is known."""

    def digest(self, item: str) -> str:
        """Hexadecimal SHA-256 that changes when, and only when, the picture's bytes change."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, read lazily; the currency of the library.

    Attributes:
        name: What the set is called in tables and file names, e.g. ``"scenes/flowers"``.
        classes: Class names; a label is an index into them.
        items: Name of each image, unique in the set (a relative path, or a scene's number).
        labels: (n,) int64.
        groups: (n,) int64; images of one group (one flat, one photograph in two copies) must
            never be parted by a split.
        source: Gives the pixels.
        notes: What was found and done while loading, one sentence each, to be shown to people.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=20)
        >>> len(images), images.image(0).mode
        (20, 'RGB')
    """

    name: str
    classes: tuple[str, ...]
    items: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    source: Source
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(self.items), len(self.labels), len(self.groups)}
        if len(lengths) != 1:
            raise DataError(
                f"Image set {self.name!r} has {len(self.items)} items, {len(self.labels)} labels "
                f"and {len(self.groups)} groups; give one of each for every image."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        sizes = f"{len(self)} images, {len(self.classes)} classes"
        return f"ImageSet({self.name!r}, {sizes}, {self.origin})"

    @property
    def origin(self) -> str:
        """``"scenes"``, ``"photographs"`` or ``"folder"``; pages must say which they show."""
        return self.source.origin

    def image(self, index: int) -> Image.Image:
        """Picture `index` as 8-bit RGB, upright."""
        return self.source.image(self.items[index])

    def masks(self, index: int) -> dict[str, np.ndarray]:
        """Masks of the parts of picture `index`, bool (H, W) each; empty for photographs."""
        return self.source.masks(self.items[index])

    def digest(self, index: int) -> str:
        """Content digest of picture `index`: the key under which its features are cached."""
        return self.source.digest(self.items[index])

    def fingerprint(self) -> str:
        """One digest of the whole set: contents, names, labels and groups."""
        total = hashlib.sha256(repr((self.name, self.classes)).encode())
        for i, item in enumerate(self.items):
            total.update(f"{item}\0{self.labels[i]}\0{self.groups[i]}\0{self.digest(i)}\n".encode())
        return total.hexdigest()

    def counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of `classes`."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))

    def subset(self, indices: Sequence[int] | np.ndarray, name: str | None = None) -> ImageSet:
        """The images at `indices`, in that order, with the same classes and source."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            name=name or self.name,
            items=tuple(self.items[i] for i in chosen),
            labels=self.labels[chosen],
            groups=self.groups[chosen],
        )
