"""Pairs of images: one similar and one dissimilar partner for each.

Taught in chapter 1 (pairs). Pairs are made within one part of a split, never across.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import PairError
from siamcam_lib.pairs.duplicates import contents


@dataclass(frozen=True)
class PairSet:
    """Pairs of images of one set.

    Attributes:
        images: The set the positions refer to.
        a: (m,) int64 positions of the first images, the anchors.
        b: (m,) int64 positions of their partners; never equal to `a`, and in what `sample` and
            `all_pairs` give never a byte-identical copy of it either.
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
    all images of the class, or of all other classes together, that are not the image itself under
    another name: a pair of byte-identical copies is a self-pair in disguise.

    Args:
        images: One part of a split, at least two classes.
        seed: The same seed gives the same pairs.

    Raises:
        PairError: if there are fewer than two classes, or no class has two images that differ.
        ImageError: if a picture cannot be read (its bytes are compared with those of others).

    Example:
        >>> import siamcam_lib as sc
        >>> pairs = sample(sc.datasets.load("scenes/flowers", n=10), seed=0)
        >>> bool((pairs.a != pairs.b).all())
        True
    """
    content = contents(images)
    random = np.random.default_rng(seed)
    rows = []
    for anchor, label in enumerate(images.labels):
        other = content != content[anchor]
        for kind, alike in enumerate((images.labels == label, images.labels != label)):
            if len(partners := np.flatnonzero(alike & other)):
                rows.append((anchor, random.choice(partners), kind))
    if {kind for *_, kind in rows} != {0, 1}:
        raise PairError(
            f"{images.name!r} has {len(images)} images of {len(np.unique(images.labels))} classes, "
            f"{len(np.unique(content))} of them different; pairs need two classes, and at least "
            "one of them with two images that differ."
        )
    a, b, label = np.array(rows, np.int64).T
    return PairSet(images, a, b, label)


def all_pairs(images: ImageSet, *, ordered: bool = True) -> tuple[PairSet, np.ndarray]:
    """Every pair of different pictures, with the weight `sample` gives it on average.

    Sampling one partner of each kind and averaging over all seeds is the same as taking all
    ordered pairs with these weights; calibration uses them to be rid of the sampling's noise.
    Like an image with itself, two byte-identical copies are no pair.

    Args:
        images: One part of a split.
        ordered: Give (a, b) and (b, a). False gives one of them, the one with a < b, with the
            weight of both: for whatever does not ask which picture comes first, the same in half
            the time.

    Returns:
        The pairs, and (m,) float64 weights; ordered, each anchor's similar pairs weigh 1 together,
        and so do its dissimilar ones.

    Raises:
        ImageError: if a picture cannot be read (its bytes are compared with those of others).
    """
    content = contents(images)
    a, b = np.nonzero(content[:, None] != content)
    label = (images.labels[a] != images.labels[b]).astype(np.int64)
    size = np.bincount(2 * a + label)  # of one anchor, similar or dissimilar
    weight = 1 / size[2 * a + label]
    if not ordered:
        weight += 1 / size[2 * b + label]
        once = a < b
        a, b, label, weight = a[once], b[once], label[once], weight[once]
    return PairSet(images, a, b, label), weight
