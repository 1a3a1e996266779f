"""Pairs of images: one similar and one dissimilar partner for each.

Taught in chapter 1 (pairs). Pairs are made within one part of a split, never across.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import PairError


@dataclass(frozen=True)
class PairSet:
    """Pairs of images of one set.

    Attributes:
        images: The set the positions refer to.
        a: (m,) int64 positions of the first images, the anchors.
        b: (m,) int64 positions of their partners; never equal to `a`.
        label: (m,) int64; 0 where both are of one class, 1 where they are not.

    Example:
        >>> import siamcam_lib as sc
        >>> sample(sc.datasets.load("scenes/flowers", n=10), seed=0)
        PairSet(20 pairs: 10 similar, 10 dissimilar)
    """

    images: ImageSet
    a: np.ndarray
    b: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def __repr__(self) -> str:
        similar, different = np.bincount(self.label, minlength=2)
        return f"PairSet({len(self)} pairs: {similar} similar, {different} dissimilar)"


def sample(images: ImageSet, seed: int = 0) -> PairSet:
    """Give each image one partner of its class and one of another (Livieris et al., section 4).

    An image alone in its class gets only the dissimilar pair. Partners are drawn uniformly from
    all images of the class, or of all other classes together.

    Args:
        images: One part of a split, at least two classes.
        seed: The same seed gives the same pairs.

    Raises:
        PairError: if there are fewer than two classes, or no class has two images.

    Example:
        >>> import siamcam_lib as sc
        >>> pairs = sample(sc.datasets.load("scenes/flowers", n=10), seed=0)
        >>> bool((pairs.a != pairs.b).all())
        True
    """
    found, counts = np.unique(images.labels, return_counts=True)
    if len(found) < 2 or counts.max(initial=0) < 2:
        raise PairError(
            f"{images.name!r} has {len(images)} images of {len(found)} classes; pairs need two "
            "classes, and at least one of them with two images."
        )
    random = np.random.default_rng(seed)
    rows = []
    for anchor, label in enumerate(images.labels):
        same = np.flatnonzero(images.labels == label)
        same = same[same != anchor]
        if len(same):
            rows.append((anchor, random.choice(same), 0))
        rows.append((anchor, random.choice(np.flatnonzero(images.labels != label)), 1))
    a, b, label = np.array(rows, np.int64).T
    return PairSet(images, a, b, label)


def all_pairs(images: ImageSet) -> tuple[PairSet, np.ndarray]:
    """Every ordered pair, with the weight that `sample` gives it on average.

    Sampling one partner of each kind and averaging over all seeds is the same as taking all
    ordered pairs with these weights; calibration uses them to be rid of the sampling's noise.

    Returns:
        The pairs, and (m,) float64 weights; each anchor's similar pairs weigh 1 together, and so
        do its dissimilar ones.
    """
    n = len(images)
    a, b = np.nonzero(~np.eye(n, dtype=bool))
    label = (images.labels[a] != images.labels[b]).astype(np.int64)
    size = np.bincount(images.labels)[images.labels]  # of each image's class
    weight = np.where(label == 1, 1 / np.maximum(n - size, 1)[a], 1 / np.maximum(size - 1, 1)[a])
    return PairSet(images, a, b, label), weight
