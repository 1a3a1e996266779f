"""Splitting images into training, validation and test parts before any pair is made.

Taught in chapter 1 (pairs). The split keeps class shares, keeps groups together and is seeded.
"""

from __future__ import annotations

import math
import warnings
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
COMFORTABLE = 20
NAMED = 5
"""Classes that a message names; of the others it says how many there are."""


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
    most = max(images.counts().values(), default=0)
    if most < VALIDATION_FOLDS or len(images) - most < 3:  # before the pictures are looked at
        raise _too_few(
            images,
            f"No split can do with fewer than {VALIDATION_FOLDS} of one class and 3 of others.",
        )
    groups = images.groups
    if images.origin != "scenes":  # drawn scenes have no copies
        groups = find_duplicates(images).joined(groups)
    everything = np.arange(len(images))
    units = groups if grouped else everything  # what is never parted
    pictures = _pictures(images)
    rest, test = _part(everything, images, units, TEST_FOLDS, seed, pictures)
    train, val = _part(rest, images, units, VALIDATION_FOLDS, seed, pictures)
    for name, indices in (("training", train), ("validation", val), ("test", test)):
        if not _pairable(pictures[:, indices]):
            raise _too_few(
                images,
                f"With seed {seed} the {name} part would hold {len(indices)} of "
                f"{len(np.unique(images.labels[indices]))} classes, too few for one similar and "
                "one dissimilar pair.",
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


def check_pairable(name: str, part: ImageSet) -> None:
    """Refuse a part of a split in which there is no similar pair, or no dissimilar one.

    Args:
        name: What the part is for: ``"training"``, say.
        part: Its images; a picture and its byte-identical copy make no pair.

    Raises:
        PairError: if so.

    Example:
        >>> import siamcam_lib as sc
        >>> check_pairable("training", sc.datasets.load("scenes/flowers", n=10))
    """
    if not _pairable(_pictures(part)):
        raise PairError(
            f"The {name} part of {part.name!r} has too few images: {_counted(part)}. It needs two "
            "classes, and at least two different images of one of them; sc.pairs.split makes such "
            "parts."
        )


def _pictures(images: ImageSet) -> np.ndarray:
    """Label and content of each image, (2, n)."""
    return np.stack([images.labels, contents(images)])


def _pairable(pictures: np.ndarray) -> bool:
    """Whether there is a similar pair and a dissimilar one."""
    of_class = np.unique(np.unique(pictures, axis=1)[0], return_counts=True)[1]
    return len(of_class) > 1 and bool(of_class.max() > 1)


def _too_few(images: ImageSet, detail: str, what: str = "images") -> PairError:
    """What there is, what is needed, and then the detail."""
    return PairError(
        f"{images.name!r} has too few {what}: {_counted(images)}. Two classes need {LEAST} {what} "
        f"each: give more ({COMFORTABLE} a class are comfortable). {detail}"
    )


def _counted(images: ImageSet) -> str:
    """How many images of which classes there are, the largest first."""
    found = sorted(images.counts().items(), key=lambda named: -named[1])
    named = [f"{count} of {name!r}" for name, count in found if count]
    rest = [f"others of {len(named) - NAMED} classes"] if len(named) > NAMED else []
    return ", ".join(named[:NAMED] + rest) or "none"


def _part(
    indices: np.ndarray,
    images: ImageSet,
    groups: np.ndarray,
    folds: int,
    seed: int,
    pictures: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Set one of `folds` stratified, grouped folds aside: (the others, the one), both sorted.

    It is the first that holds pairs of both kinds; of few images not every one does.
    """
    labels = images.labels
    available = len(np.unique(groups[indices]))
    if available < folds:
        raise _too_few(
            images,
            f"Of {len(indices)} images there are {available} independent groups, as copies and "
            f"pictures of one group count once; {folds} are needed to set a part aside.",
            "independent images",
        )
    most = np.unique(labels[indices], return_counts=True)[1].max()
    if most < folds:
        raise _too_few(
            images,
            f"No class has more than {most} images left, and {folds} are needed to set a part "
            "aside.",
        )
    folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer images than folds is expected (six AirBnB classes have two).
        warnings.filterwarnings("ignore", message="The least populated class")
        try:
            parts = list(folder.split(indices, labels[indices], groups[indices]))
        except ValueError as error:
            told = str(error).rstrip(".")
            raise PairError(f"{images.name!r} cannot be split in {folds}: {told}.") from error
    kept, aside = next((p for p in parts if _pairable(pictures[:, indices[p[1]]])), parts[0])
    return indices[kept], indices[aside]
