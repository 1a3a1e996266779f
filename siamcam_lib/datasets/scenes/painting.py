"""One scene, or a pair of scenes, with exact masks of every part.

`paint` is a pure function: the same arguments give the same picture. The localisation chapters
use `pair` to set tasks with a known answer: what do these two share, and what only seems so?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import ModuleType

import numpy as np
from PIL import Image

from siamcam_lib.datasets.scenes import flowers, lesions, marks, rooms
from siamcam_lib.datasets.scenes.canvas import generator
from siamcam_lib.errors import DataError

_KINDS = {"flowers": flowers, "lesions": lesions, "rooms": rooms}

KINDS: tuple[str, ...] = tuple(_KINDS)
"""The kinds of scene there are."""

SMALLEST, LARGEST = 32, 2048


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn picture and the truth about it.

    Attributes:
        image: The picture, 8-bit RGB, S × S.
        masks: For each part that can be seen, the pixels it shows at, bool (S, S), read-only. No
            pixel is in two masks; a pixel belongs to the part that covers its centre.
        kind: ``"flowers"``, ``"lesions"`` or ``"rooms"``.
        label: Class of the part called ``"deciding"``, an index into `class_names`.
        second: Class of the part called ``"second"``, or None.
        shortcut: Class whose mark is shown, or None.
        shared: Key of the object that is painted alike into other pictures, or None.
        seed: Seed it was painted from.
    """

    image: Image.Image
    masks: dict[str, np.ndarray] = field(repr=False)
    kind: str
    label: int
    second: int | None
    shortcut: int | None
    shared: int | None
    seed: int

    @property
    def labels(self) -> tuple[int, ...]:
        """Classes of the deciding parts: one, or two in a scene with two parts."""
        return (self.label,) if self.second is None else (self.label, self.second)


def class_names(kind: str) -> tuple[str, ...]:
    """Class names of a kind of scene, in the order of the labels.

    Example:
        >>> class_names("lesions")
        ('Benign', 'Malignant')
    """
    return module_of(kind).CLASSES


def part_names(kind: str) -> tuple[str, ...]:
    """Names a mask can have in this kind of scene.

    ``"deciding"``: what sets the class (blossom, mole, furniture of the class).
    ``"second"``: another such part, as prominent, in scenes with two parts.
    ``"stem"``: stem and leaves (flowers only).
    ``"common"``: furniture that several classes have (rooms only).
    ``"distractor"``: what belongs to no class (grass, hairs, ruler, lamp, plant, picture).
    ``"shortcut"``: the mark that goes with the class in training and need not in testing.
    ``"shared"``: the object painted alike into both pictures of a pair.

    Example:
        >>> part_names("lesions")
        ('deciding', 'second', 'distractor', 'shortcut', 'shared')
    """
    return module_of(kind).PARTS


def paint(
    kind: str,
    *,
    label: int | str,
    seed: int,
    size: int = 224,
    second: int | str | None = None,
    style: int | None = None,
    shortcut: int | str | None = None,
    shared: int | None = None,
) -> Scene:
    """Paint one scene.

    Args:
        kind: One of `KINDS`.
        label: Class of the deciding part, by index or name.
        seed: Non-negative integer; sets shape, colour, place and passers-by.
        size: Side S of the picture in pixels, 32 to 2048.
        second: Class of a second deciding part, or None for a scene with one.
        style: Seed of the surroundings (ground, skin, or the flat with its wall, floor and wood);
            pictures of one style look as if taken in one place. None takes `seed`.
        shortcut: Class whose mark is laid over a corner, or None for no mark.
        shared: Key of an object that looks the same, at the same place, in every picture with
            this key; None for no such object.

    Returns:
        The `Scene`: picture, masks, and what was asked for.

    Raises:
        DataError: if a kind, class, seed or size is not one there is.

    Example:
        >>> scene = paint("flowers", label="Tulip", seed=3, size=64)
        >>> scene.image.size, scene.masks["deciding"].dtype
        ((64, 64), dtype('bool'))
    """
    module = module_of(kind)
    label = label_index(kind, label, "label")
    second = None if second is None else label_index(kind, second, "second")
    shortcut = None if shortcut is None else label_index(kind, shortcut, "shortcut")
    seed = whole(seed, "seed")
    style = seed if style is None else whole(style, "style")
    shared = None if shared is None else whole(shared, "shared")
    size = whole(size, "size", SMALLEST, LARGEST)

    pixels, owners = module.draw(label, second, seed, style, size)
    if shortcut is not None:
        shift = generator(21, seed).uniform(0, 0.03, 2)
        corner = (0.02 + shift[0], 0.79 + shift[1])
        thing = marks.mark(kind, shortcut, size)
        marks.stamp(pixels, owners, thing, corner, 1 + module.PARTS.index("shortcut"))
    if shared is not None:
        thing, corner = marks.keepsake(kind, shared, size)
        marks.stamp(pixels, owners, thing, corner, 1 + module.PARTS.index("shared"))
    masks = {}
    for number, name in enumerate(module.PARTS, start=1):
        mask = owners == number
        if mask.any():
            mask.flags.writeable = False
            masks[name] = mask
    return Scene(Image.fromarray(pixels), masks, kind, label, second, shortcut, shared, seed)


def pair(
    kind: str,
    seed: int,
    *,
    label_a: int | str,
    label_b: int | str,
    size: int = 224,
    shared_part: bool = False,
    two_parts: bool = False,
    second_a: int | str | None = None,
    second_b: int | str | None = None,
    shortcut: float | None = None,
) -> tuple[Scene, Scene]:
    """Paint two scenes that differ in everything but what is asked to be alike.

    With `two_parts` and equal labels the pair has one class in common (``"deciding"`` in both)
    and one private class each (``"second"``), where there are classes enough: lesions have only
    two, so there the second mole of b is of the common class.

    Args:
        kind: One of `KINDS`.
        seed: Non-negative integer.
        label_a: Class of the deciding part of the first picture.
        label_b: The same for the second picture.
        size: Side in pixels.
        shared_part: Paint one object into both pictures, with the same pixels at the same place.
        two_parts: Give each picture a second deciding part.
        second_a: Class of the second part of the first picture; None draws one. Giving it
            implies `two_parts`.
        second_b: The same for the second picture.
        shortcut: Strength of a shortcut as in `scenes`, or None for none.

    Returns:
        The two scenes.

    Raises:
        DataError: if an argument is not one there is.

    Example:
        >>> a, b = pair("flowers", 1, label_a="Rose", label_b="Rose", size=64, two_parts=True)
        >>> a.label == b.label, len({a.second, b.second, a.label})
        (True, 3)
    """
    seed = whole(seed, "seed")
    labels = [label_index(kind, label_a, "label_a"), label_index(kind, label_b, "label_b")]
    seconds: list[int | None] = [None, None]
    if two_parts or second_a is not None or second_b is not None:
        order = generator(22, seed).permutation(len(class_names(kind))).tolist()
        seconds[0] = (
            _first(order, labels, [labels[0]])
            if second_a is None
            else label_index(kind, second_a, "second_a")
        )
        seconds[1] = (
            _first(order, [*labels, seconds[0]], [seconds[0]])
            if second_b is None
            else label_index(kind, second_b, "second_b")
        )
    key = derived(23, seed) if shared_part else None
    made = []
    for place, (label, second) in enumerate(zip(labels, seconds, strict=True)):
        own = derived(24, seed, place)
        mark = None if shortcut is None else marked_class(kind, label, own, shortcut)
        made.append(
            paint(kind, label=label, seed=own, size=size, second=second, shortcut=mark, shared=key)
        )
    return made[0], made[1]


def marked_class(kind: str, label: int, seed: int, strength: float) -> int:
    """Class whose mark a picture carries: its own with probability `strength`, else any."""
    rng = generator(25, seed)
    own, other = rng.random() < strength_of(strength), int(rng.integers(len(class_names(kind))))
    return label if own else other


def derived(*keys: int) -> int:
    """A seed that depends on all the keys."""
    return int(generator(*keys).integers(2**62))


def _first(
    order: Sequence[int], avoid: Sequence[int | None], at_least: Sequence[int | None]
) -> int:
    free = [c for c in order if c not in avoid] or [c for c in order if c not in at_least]
    return free[0]


def module_of(kind: str) -> ModuleType:
    """The module that draws a kind of scene, or a clear error."""
    if not isinstance(kind, str) or kind not in _KINDS:
        raise DataError(
            f"There are no scenes of kind {kind!r}; the kinds are {', '.join(map(repr, KINDS))}."
        )
    return _KINDS[kind]


def label_index(kind: str, label: int | str, name: str) -> int:
    """A class given by index or name, as an index."""
    classes = class_names(kind)
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, Integral) and not isinstance(label, bool) and 0 <= label < len(classes):
        return int(label)
    raise DataError(
        f"{name}={label!r} is no class of {kind!r}; give 0 to {len(classes) - 1} or one of "
        f"{', '.join(classes)}."
    )


def whole(value: int, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
    """A whole number within bounds, or a clear error."""
    fits = isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        raise DataError(f"{name}={value!r} does not do; give a whole number from {low} to {high}.")
    return int(value)


def strength_of(value: float) -> float:
    """A shortcut's strength as a float in [0, 1], or a clear error."""
    fits = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= 1
    if not fits:
        raise DataError(
            f"shortcut={value!r} does not do; give a strength from 0 (the mark says nothing about "
            "the class) to 1 (it gives the class away), or None for no mark."
        )
    return float(value)
