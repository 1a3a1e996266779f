"""Whole sets of drawn scenes as an `ImageSet`, painted only when looked at.

Chapter 1 (pairs) starts from these sets: classes as unequal as in the photographs, and, for rooms,
several pictures of one flat that a split must keep together.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from siamcam_lib.datasets.imageset import ImageSet
from siamcam_lib.datasets.scenes.canvas import generator
from siamcam_lib.datasets.scenes.painting import (
    LARGEST,
    SMALLEST,
    Scene,
    class_names,
    derived,
    label_index,
    marked_class,
    module_of,
    paint,
    strength_of,
    whole,
)
from siamcam_lib.errors import DataError

GENERATION = 3
"""Raise this when the drawing changes: features cached under the old pictures are then not used."""


@dataclass(frozen=True)
class SceneSource:
    """Paints the pictures of a set from their names; holds nothing but the set's parameters.

    A name such as ``"Rose/0012"`` or ``"Bedroom/flat007-0003"`` says all that is needed, so a set
    can be cut, sent to another process and cached.

    Attributes:
        kind: Kind of scene.
        size: Side in pixels.
        seed: Seed of the set.
        shortcut: Strength of the shortcut, or None.
        shared_part: Whether one object is painted alike into every picture.
        two_parts: Whether each picture has a second deciding part of another class.
    """

    kind: str
    size: int = 224
    seed: int = 0
    shortcut: float | None = None
    shared_part: bool = False
    two_parts: bool = False

    origin = "scenes"

    def scene(self, item: str) -> Scene:
        """Picture, masks and all labels of the scene called `item`."""
        return _painted(*self._recipe(item))

    def image(self, item: str) -> Image.Image:
        """The picture called `item`, 8-bit RGB."""
        return self.scene(item).image.copy()

    def masks(self, item: str) -> dict[str, np.ndarray]:
        """Masks of the visible parts, bool (S, S) each, read-only, no two overlapping."""
        return dict(self.scene(item).masks)

    def digest(self, item: str) -> str:
        """Hexadecimal SHA-256 of all that the picture is painted from."""
        recipe = ("siamcam scene", GENERATION, *self._recipe(item))
        return hashlib.sha256(repr(recipe).encode()).hexdigest()

    def _recipe(
        self, item: str
    ) -> tuple[str, int, int, int, int | None, int, int | None, int | None]:
        found = re.fullmatch(r"(?P<name>[^/]+)/(?:flat(?P<flat>\d+)-)?(?P<number>\d+)", item)
        if found is None or found["name"] not in class_names(self.kind):
            raise DataError(
                f"{item!r} is no scene of {self.kind!r}; a name looks like "
                f"'{class_names(self.kind)[0]}/0003'."
            )
        label = label_index(self.kind, found["name"], "label")
        own = derived(30, self.seed, label, int(found["number"]))
        style = derived(31, self.seed, int(found["flat"])) if found["flat"] else own
        second = None
        if self.two_parts:
            others = [c for c in range(len(class_names(self.kind))) if c != label]
            second = others[int(generator(32, own).integers(len(others)))]
        mark = None
        if self.shortcut is not None:
            mark = marked_class(self.kind, label, own, self.shortcut)
        shared = derived(33, self.seed) if self.shared_part else None
        return self.kind, label, own, self.size, second, style, mark, shared


@lru_cache(maxsize=512)  # a set as chapters use them: painting takes longer than a network's look
def _painted(
    kind: str,
    label: int,
    seed: int,
    size: int,
    second: int | None,
    style: int,
    mark: int | None,
    shared: int | None,
) -> Scene:
    return paint(
        kind,
        label=label,
        seed=seed,
        size=size,
        second=second,
        style=style,
        shortcut=mark,
        shared=shared,
    )


def scenes(
    kind: str,
    n: int | None = None,
    *,
    size: int = 224,
    seed: int = 0,
    shortcut: float | None = None,
    shared_part: bool = False,
    two_parts: bool = False,
) -> ImageSet:
    """A set of drawn scenes with exact masks.

    Class sizes follow the photographs the kind mirrors (rooms have a long tail), with at least two
    pictures a class. In rooms the pictures of one flat form a group; elsewhere each picture is its
    own group. Picture k of a class is the same whatever `n` is, but for the flat a room is in.

    Args:
        kind: ``"flowers"``, ``"lesions"`` or ``"rooms"``.
        n: Number of pictures, at least two a class; None takes 400, 300 or 360.
        size: Side in pixels, 32 to 2048.
        seed: Seed of the whole set.
        shortcut: None for no mark; else the strength s in [0, 1] with which a coloured mark tells
            the class: it is the class's own with probability s, else that of any class, so that
            P(own) = s + (1 − s)/K for K classes. Take 0.9 to train and 0 to test, say.
        shared_part: Paint one object, the same in every picture of the set.
        two_parts: Give each picture a second deciding part, of another class; its class is
            ``images.source.scene(item).second``.

    Returns:
        The set, named ``"scenes/<kind>"``, with a `SceneSource`.

    Raises:
        DataError: if an argument is not one there is, or `n` is too small.

    Example:
        >>> images = scenes("rooms", 30, size=64)
        >>> len(images), images.image(0).size, "deciding" in images.masks(0)
        (30, (64, 64), True)
    """
    classes = class_names(kind)
    module = module_of(kind)
    least = 2 * len(classes)
    if n is None:
        n = module.COUNT
    elif isinstance(n, bool) or not isinstance(n, int | np.integer) or n < least:
        raise DataError(
            f"n={n!r} scenes of {kind!r} cannot be made; give a whole number of at least {least}, "
            f"two for each of the {len(classes)} classes."
        )
    source = SceneSource(
        kind=kind,
        size=whole(size, "size", SMALLEST, LARGEST),
        seed=whole(seed, "seed"),
        shortcut=None if shortcut is None else strength_of(shortcut),
        shared_part=bool(shared_part),
        two_parts=bool(two_parts),
    )
    counts = _quotas(np.array(module.SHARES), int(n))
    labels = np.repeat(np.arange(len(classes)), counts)
    numbers = np.concatenate([np.arange(c) for c in counts])
    groups = np.arange(n)
    names = [f"{classes[c]}/{k:04d}" for c, k in zip(labels, numbers, strict=True)]
    if kind == "rooms":
        groups = _flats(source.seed, int(n))
        names = [
            f"{classes[c]}/flat{g:03d}-{k:04d}"
            for c, g, k in zip(labels, groups, numbers, strict=True)
        ]
    return ImageSet(
        name=f"scenes/{kind}",
        classes=classes,
        items=tuple(names),
        labels=labels.astype(np.int64),
        groups=groups.astype(np.int64),
        source=source,
        notes=_notes(source, int(n)),
    )


def _quotas(shares: np.ndarray, n: int) -> np.ndarray:
    """Pictures a class, by largest remainder, at least two each; they add up to `n`."""
    spare = n - 2 * len(shares)
    wanted = np.maximum(shares / shares.sum() * n - 2, 0)
    wanted = wanted / max(wanted.sum(), 1e-9) * spare
    counts = np.floor(wanted).astype(int)
    rest = spare - counts.sum()
    counts[np.argsort(-(wanted - counts), kind="stable")[:rest]] += 1
    return counts + 2


def _flats(seed: int, n: int) -> np.ndarray:
    """Flat number of each picture: one to six pictures a flat, of whatever rooms it has."""
    rng = generator(34, seed)
    sizes: list[int] = []
    while sum(sizes) < n:
        sizes.append(int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.2, 0.25, 0.2, 0.15, 0.1, 0.1])))
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes)[:n])


def _notes(source: SceneSource, n: int) -> tuple[str, ...]:
    notes = [f"{n} drawn scenes of kind {source.kind} (seed {source.seed}), not photographs."]
    if source.kind == "rooms":
        notes.append("Pictures of one flat share wall, floor and wood and form one group.")
    if source.shortcut is not None:
        notes.append(
            f"A coloured mark tells the class with strength {source.shortcut:g}: a shortcut."
        )
    if source.shared_part:
        notes.append("One object is painted alike into every picture.")
    if source.two_parts:
        notes.append("Each picture has a second deciding part of another class.")
    return tuple(notes)
