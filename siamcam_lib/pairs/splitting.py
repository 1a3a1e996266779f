"""Splitting images into training, validation and test parts before any pair is made.

Taught in chapter 1 (pairs). The split keeps class shares, keeps groups together and is seeded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import PairError
from siamcam_lib.pairs.duplicates import contents, find_duplicates

TEST_FOLDS, VALIDATION_FOLDS = 5, 10
"""80/20, and a tenth of the training part for validation, as in Livieris et al. (section 4)."""

LEAST = math.ceil((VALIDATION_FOLDS + 1) * TEST_FOLDS / (TEST_FOLDS - 1))
"""Images of each of two classes that are enough: a tenth of what remains holds two of one."""


@dataclass(frozen=True)
class Split:
    """Three image sets with no image and no group in common, as `split` makes them.

    Parts made with ``grouped=False`` may share groups; `check_split` tells.

    Example:
        >>> import siamcam_lib as sc
        >>> sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
        Split(train=71, val=9, test=20)
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet

    def __repr__(self) -> str:
        return f"Split(train={len(self.train)}, val={len(self.val)}, test={len(self.test)})"


def split(images: ImageSet, seed: int = 0, *, grouped: bool = True) -> Split:
    """Split images 72/8/20 into training, validation and test, by class and by group.

    Args:
        images: At least two classes and ten groups. Groups are those of the set, joined where
            photographs are copies or near-copies of each other (`find_duplicates`).
        seed: The same seed gives the same split.
        grouped: False splits image by image, as the paper does. The parts still carry the groups,
            so that `check_split`, `find_leaks` and `sc.fit` see which of them were parted;
            chapter 1 measures what that leak is worth.

    Raises:
        PairError: if there are too few classes, images or groups to fill the three parts.

    Example:
        >>> import siamcam_lib as sc
        >>> parts = split(sc.datasets.load("scenes/rooms", n=200), seed=1)
        >>> set(parts.train.groups) & set(parts.test.groups)
        set()
    """
    if len(np.unique(images.labels)) < 2:
        raise PairError(f"{images.name!r} has one class; pairs need at least two.")
    groups = images.groups
    if images.origin != "scenes":  # drawn scenes have no copies
        groups = find_duplicates(images).joined(groups)
    everything = np.arange(len(images))
    units = groups if grouped else everything  # what is never parted
    pictures = np.stack([images.labels, contents(images)])  # a picture and its copy make no pair

    def pairable(indices: np.ndarray) -> bool:
        """Whether there is a similar pair and a dissimilar one."""
        of_class = np.unique(np.unique(pictures[:, indices], axis=1)[0], return_counts=True)[1]
        return len(of_class) > 1 and of_class.max() > 1

    rest, test = _part(everything, images.labels, units, TEST_FOLDS, seed, images.name, pairable)
    train, val = _part(rest, images.labels, units, VALIDATION_FOLDS, seed, images.name, pairable)
    for name, indices in (("training", train), ("validation", val), ("test", test)):
        if not pairable(indices):
            raise PairError(
                f"The {name} part of {images.name!r} would hold {len(indices)} images of "
                f"{len(np.unique(images.labels[indices]))} classes, too few for one similar and "
                f"one dissimilar pair. Two classes need {LEAST} images each: give more (twenty a "
                "class are comfortable)."
            )
    joined = ImageSet(
        images.name, images.classes, images.items, images.labels, groups, images.source,
        images.notes,
    )  # fmt: skip
    return Split(joined.subset(train), joined.subset(val), joined.subset(test))


def forget_groups(parts: Split) -> Split:
    """The same parts with every picture a group of its own, as if nobody had looked for copies.

    `sc.fit` refuses parts that share groups. To measure what that leak is worth, they have to be
    forgotten; never do it for any other reason.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/rooms", n=200)
        >>> parts = forget_groups(split(images, seed=0, grouped=False))
        >>> set(parts.train.groups) & set(parts.test.groups)
        set()
    """
    three = (parts.train, parts.val, parts.test)
    ends = np.cumsum([0, *map(len, three)])
    return Split(
        *(
            replace(part, groups=np.arange(start, start + len(part)))
            for part, start in zip(three, ends, strict=False)
        )
    )


def _part(
    indices: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: int,
    seed: int,
    name: str,
    pairable: Callable[[np.ndarray], bool],
) -> tuple[np.ndarray, np.ndarray]:
    """Set one of `folds` stratified, grouped folds aside: (the others, the one), both sorted.

    It is the first that is `pairable`; of few images not every one is.
    """
    available = len(np.unique(groups[indices]))
    if available < folds:
        raise PairError(
            f"{name!r} has {available} independent groups of images; at least {folds} are needed "
            "to set a part aside. Give more images, or images that are not copies of each other."
        )
    most = np.unique(labels[indices], return_counts=True)[1].max()
    if most < folds:
        raise PairError(
            f"No class of {name!r} has more than {most} images left, and {folds} are needed to set "
            f"a part aside. Two classes need {LEAST} images each: give more."
        )
    folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer images than folds is expected (six AirBnB classes have two).
        warnings.filterwarnings("ignore", message="The least populated class")
        try:
            parts = list(folder.split(indices, labels[indices], groups[indices]))
        except ValueError as error:
            told = str(error).rstrip(".")
            raise PairError(f"{name!r} cannot be split into {folds} parts: {told}.") from error
    kept, aside = next((part for part in parts if pairable(indices[part[1]])), parts[0])
    return indices[kept], indices[aside]
