"""Small things laid over a finished scene: the shortcut's mark and the object two pictures share.

They are stamped on after everything else, grain included, so that the same thing has the very same
pixels in every picture. Used by the chapters that ask whether a map falls for a shortcut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from siamcam_lib.datasets.scenes.canvas import (
    Canvas,
    circle,
    curve,
    generator,
    hexa,
    pick,
    ribbon,
    vary,
)

MARK_COLOURS = ("e0483e", "2f7fd0", "f0b429", "3fa05a", "8e52b5", "ef7f2e", "2fb3b0", "d0559a")


def stamp(
    pixels: np.ndarray, owners: np.ndarray, thing: Canvas, corner: tuple[float, float], part: int
) -> None:
    """Lay a drawn thing over a picture, in place.

    A pixel belongs to the thing where the thing covers it wholly: there, and only there, its
    colour does not depend on what lies beneath.

    Args:
        pixels: uint8 (S, S, 3), changed in place.
        owners: uint8 (S, S), changed in place.
        thing: A canvas with one part, ``"thing"``, on black.
        corner: x and y of its upper left corner in units of the picture.
        part: Number the covered pixels get.
    """
    colour, cover = thing.cutout()
    size = len(pixels)
    side = len(colour)
    left, top = (min(max(0, round(v * size)), size - side) for v in corner)
    window = (slice(top, top + side), slice(left, left + side))
    below = pixels[window].astype(np.float32)
    mixed = below + cover[..., None] * (255 * colour - below)
    pixels[window] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
    owners[window][cover >= 1] = part


def mark(kind: str, label: int, size: int) -> Canvas:
    """The shortcut's mark of a class: same shape within a kind, one colour a class."""
    thing = Canvas(np.zeros((max(6, round(0.17 * size)),) * 2 + (3,), np.float32), ("thing",))
    hue = hexa(MARK_COLOURS[label % len(MARK_COLOURS)])
    {"flowers": _plant_label, "lesions": _sticker, "rooms": _badge}[kind](thing, hue)
    return thing


def keepsake(kind: str, key: int, size: int) -> tuple[Canvas, tuple[float, float]]:
    """The object that two pictures share, and where it goes; both depend on `key` alone."""
    rng = generator(20, key)
    side = 0.2 if kind == "flowers" else 0.19
    thing = Canvas(np.zeros((max(6, round(side * size)),) * 2 + (3,), np.float32), ("thing",))
    if kind == "flowers":
        _butterfly(thing, rng)
        corner = (float(rng.choice([0.03, 0.76])), float(rng.uniform(0.02, 0.05)))
    elif kind == "lesions":
        _scale_card(thing, rng)
        corner = ((0.02, 0.02), (0.79, 0.02), (0.79, 0.79))[int(rng.integers(3))]
    else:
        _teddy(thing, rng)
        corner = (float(rng.uniform(0.72, 0.79)), 0.795)
    return thing, corner


def _plant_label(thing: Canvas, hue: np.ndarray) -> None:
    wood = hexa("c49a62")
    thing.polygon([[0.44, 0.4], [0.56, 0.4], [0.54, 1.0], [0.46, 1.0]], wood * 0.8, "thing")
    thing.polygon([[0.46, 0.4], [0.5, 0.4], [0.5, 1.0], [0.47, 1.0]], wood)
    board = np.array([[0.08, 0.1], [0.92, 0.06], [0.94, 0.56], [0.06, 0.58]])
    thing.polygon(board, hue * 0.7, "thing")
    thing.polygon(0.5 + 0.9 * (board - 0.5) - [0, 0.02], hue)
    for y in (0.22, 0.33, 0.44):
        thing.line(
            np.array([[0.22, y], [0.78 - 0.3 * (y > 0.4), y - 0.01]]), hue * 0.25 + 0.75, 0.04
        )


def _sticker(thing: Canvas, hue: np.ndarray) -> None:
    thing.polygon(circle((0.5, 0.5), 0.48, 48), hue * 0.75, "thing")
    thing.shaded(
        circle((0.5, 0.5), 0.44, 48), np.array([0.36, 0.34]), hue * 0.9, hue * 1.1, None, 6
    )
    thing.line(circle((0.5, 0.5), 0.34, 49), hue * 0.3 + 0.7, 0.03)
    thing.line(np.array([[0.5, 0.3], [0.5, 0.7]]), hue * 0.3 + 0.7, 0.03)
    thing.line(np.array([[0.3, 0.5], [0.7, 0.5]]), hue * 0.3 + 0.7, 0.03)


def _badge(thing: Canvas, hue: np.ndarray) -> None:
    thing.polygon(rounded(0.03, 0.1, 0.97, 0.9, 0.18), hue * 0.7, "thing")
    thing.polygon(rounded(0.06, 0.12, 0.94, 0.85, 0.16), hue)
    white = hexa("fdfbf5")
    thing.polygon([[0.24, 0.5], [0.5, 0.24], [0.76, 0.5]], white)
    thing.polygon([[0.31, 0.48], [0.69, 0.48], [0.69, 0.74], [0.31, 0.74]], white)
    thing.polygon([[0.45, 0.56], [0.55, 0.56], [0.55, 0.74], [0.45, 0.74]], hue * 0.8)


def _butterfly(thing: Canvas, rng: np.random.Generator) -> None:
    hue = vary(rng, pick(rng, "e8762c", "4f8fe0", "f2d34a", "c95fb5", "f4f0e4"), 0.03)
    turn = rng.uniform(-0.5, 0.5)
    c, s = np.cos(turn), np.sin(turn)
    rot = np.array([[c, s], [-s, c]])

    def at(points: ArrayLike) -> np.ndarray:
        return 0.5 + (np.asarray(points, float) - 0.5) @ rot

    for side in (-1, 1):
        lower = curve(
            [(0.5, 0.52), (0.5 + 0.5 * side, 0.5), (0.5 + 0.4 * side, 1.0), (0.5, 0.6)], 20
        )
        upper = curve(
            [(0.5, 0.54), (0.5 + 0.28 * side, -0.18), (0.5 + 0.78 * side, 0.3), (0.5, 0.56)], 24
        )
        for wing, tone in ((lower, 0.85), (upper, 1.0)):
            root = at([[0.5, 0.54]])[0]
            thing.polygon(at(wing), hue * 0.28, "thing")
            thing.shaded(
                root + 0.84 * (at(wing) - root), root, hue * tone, hue * 0.6 * tone, None, 5
            )
            far = wing[len(wing) // 2]
            for f in (0.84, 0.66):
                spot = at([0.5 + f * (far[0] - 0.5), 0.54 + f * (far[1] - 0.54)])
                thing.dot(spot, 0.035 * (2 - f), hexa("fdf6e0"))
    dark = hexa("2c2320")
    thing.polygon(
        ribbon(at([[0.5, 0.34], [0.5, 0.5], [0.5, 0.74]]), [0.025, 0.035, 0.012]), dark, "thing"
    )
    for side in (-1, 1):
        feeler = at(curve([(0.5, 0.36), (0.5 + 0.05 * side, 0.22), (0.5 + 0.14 * side, 0.16)], 8))
        thing.line(feeler, dark, 0.022, "thing")


def _scale_card(thing: Canvas, rng: np.random.Generator) -> None:
    card, ink = hexa("f4f1e8"), hexa("23262b")
    hue = vary(rng, pick(rng, "3f9a6a", "d0653e", "3f78b8", "a8509a"), 0.03)
    thing.polygon(rounded(0.02, 0.02, 0.98, 0.98, 0.06), card * 0.85, "thing")
    thing.polygon(rounded(0.03, 0.03, 0.96, 0.95, 0.06), card)
    for i in range(8):
        if i % 2 == 0:
            x = 0.1 + 0.1 * i
            thing.polygon([[x, 0.1], [x + 0.1, 0.1], [x + 0.1, 0.2], [x, 0.2]], ink)
            thing.polygon([[0.1, x], [0.2, x], [0.2, x + 0.1], [0.1, x + 0.1]], ink)
    thing.polygon([[0.3, 0.32], [0.88, 0.32], [0.88, 0.56], [0.3, 0.56]], hue)
    thing.polygon([[0.3, 0.62], [0.58, 0.62], [0.58, 0.88], [0.3, 0.88]], ink * 1.5)
    thing.polygon([[0.62, 0.62], [0.88, 0.62], [0.88, 0.88], [0.62, 0.88]], hexa("9a9a96"))


def _teddy(thing: Canvas, rng: np.random.Generator) -> None:
    fur = vary(rng, pick(rng, "b07a48", "8a5a3a", "d9b88a", "c9a0a8"), 0.03)
    pale, dark = fur * 0.5 + 0.5 * hexa("fff2dc"), hexa("2a1c16")
    for x, y, r in (
        (0.28, 0.9, 0.12),
        (0.72, 0.9, 0.12),
        (0.22, 0.62, 0.1),
        (0.78, 0.62, 0.1),
        (0.5, 0.72, 0.25),
        (0.29, 0.16, 0.1),
        (0.71, 0.16, 0.1),
        (0.5, 0.3, 0.23),
    ):
        y = min(y, 0.99 - r)
        thing.polygon(circle((x, y), r), fur * 0.62, "thing")
        thing.shaded(
            circle((x, y), 0.92 * r),
            np.array([x - 0.3 * r, y - 0.35 * r]),
            fur * 0.82,
            fur * 1.12,
            None,
            5,
        )
    for x in (0.29, 0.71):
        thing.dot((x, 0.16), 0.05, pale * 0.9)
    thing.dot((0.5, 0.76), (0.15, 0.15), pale)
    thing.dot((0.5, 0.38), (0.11, 0.085), pale)
    thing.dot((0.5, 0.345), (0.04, 0.03), dark)
    for x in (0.41, 0.59):
        thing.dot((x, 0.26), 0.025, dark)
    thing.line(curve([(0.44, 0.4), (0.5, 0.44), (0.56, 0.4)], 8), dark, 0.014)


def rounded(x0: float, y0: float, x1: float, y1: float, r: float) -> np.ndarray:
    """Outline of a rectangle with rounded corners."""
    out = []
    for cx, cy, start in (
        (x1 - r, y0 + r, -0.5),
        (x1 - r, y1 - r, 0.0),
        (x0 + r, y1 - r, 0.5),
        (x0 + r, y0 + r, 1.0),
    ):
        angle = np.pi * (start + np.linspace(0, 0.5, 6))
        out.append(np.stack([cx + r * np.cos(angle), cy + r * np.sin(angle)], 1))
    return np.concatenate(out)
