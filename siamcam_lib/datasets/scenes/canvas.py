"""The canvas on which every scene is drawn, and the few brushes all three kinds share.

A canvas keeps two pictures of the same size: the colours, and for each point the part it belongs
to, so that masks are exact by construction. Behind the scenes of every chapter that runs on
drawn data; chapter 1 (pairs) shows the masks.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

SUPERSAMPLING = 3
"""Linear factor at which shapes are drawn before reduction; odd, so that a pixel has a centre."""

Colour = tuple[float, float, float] | np.ndarray


def generator(*keys: int) -> np.random.Generator:
    """The random generator of a tuple of non-negative integers: the same on every platform.

    Args:
        *keys: Non-negative integers; any change gives independent numbers.

    Returns:
        A PCG64 generator seeded through `numpy.random.SeedSequence`.

    Example:
        >>> int(generator(1, 2).integers(1000)) == int(generator(1, 2).integers(1000))
        True
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(keys))))


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y of the pixel centres in units of the picture, float32 (S, S) each."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> np.ndarray:
    """Smooth random field: sums of random lattices, each twice as fine and half as strong.

    Args:
        rng: Source of the numbers.
        size: Side S of the field in pixels.
        cells: Lattice cells across the picture in the coarsest octave.
        octaves: How many lattices are summed.

    Returns:
        float32 (S, S), mean about 0 and mostly within [-1, 1].
    """
    field = rng.uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
    for octave in range(1, octaves):
        # Each lattice is enlarged only to the next one, so that all but the last step are cheap;
        # its margin of one point keeps the flat edge of the interpolation outside the picture.
        finer = 2 * cells
        low = 1 - (cells + 1) / (finer + 1)
        high = 1 + (cells + 1) * (finer + 2) / (finer + 1)
        field = _enlarged(field, finer + 3, low, high)
        field = field + 0.5**octave * rng.uniform(-1, 1, field.shape).astype(np.float32)
        cells = finer
    return _enlarged(field, size, 1.0, cells + 2.0)


def _enlarged(field: np.ndarray, size: int, low: float, high: float) -> np.ndarray:
    picture = Image.fromarray(field).resize(
        (size, size), Image.Resampling.BICUBIC, box=(low, low, high, high)
    )
    return np.array(picture)


def slope(relief: np.ndarray, step: int = 1) -> np.ndarray:
    """Rise of a field towards the lower right over `step` pixels: light from the upper left."""
    padded = np.pad(relief, ((step, 0), (step, 0)), mode="reflect")
    return relief - padded[:-step, :-step]


def blend(first: Colour, second: Colour, amount: float | np.ndarray) -> np.ndarray:
    """Colour `amount` of the way from `first` to `second`; `amount` may be a field (S, S)."""
    share = np.asarray(amount, np.float32)[..., None]
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    mixed = first + share * (second - first)
    return mixed


def hexa(code: str) -> np.ndarray:
    """The colour ``"rrggbb"`` as float32 (3,) in [0, 1]."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def pick(rng: np.random.Generator, *codes: str) -> np.ndarray:
    """One of the colours ``"rrggbb"``, each as likely as any other."""
    return hexa(codes[int(rng.integers(len(codes)))])


def vary(rng: np.random.Generator, colour: Colour, amount: float) -> np.ndarray:
    """A colour near `colour`: lightness and each channel moved by about `amount`."""
    shift = rng.normal(0, amount) + rng.normal(0, amount / 2, 3)
    return np.clip(np.asarray(colour, np.float32) + shift.astype(np.float32), 0, 1)


def smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a smooth cubic between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def curve(control: ArrayLike, count: int = 24) -> np.ndarray:
    """`count` points (count, 2) of the Bézier curve with 3 or 4 control points (k, 2)."""
    points = np.asarray(control, np.float64)
    t = np.linspace(0, 1, count)[:, None]
    u = 1 - t
    if len(points) == 3:
        return u**2 * points[0] + 2 * u * t * points[1] + t**2 * points[2]
    return u**3 * points[0] + 3 * u**2 * t * points[1] + 3 * u * t**2 * points[2] + t**3 * points[3]


def ribbon(line: np.ndarray, width: ArrayLike) -> np.ndarray:
    """Outline (2n, 2) of a band of half-width `width` along the points `line` (n, 2)."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1])[:, None], 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], 1) * np.reshape(width, (-1, 1))
    return np.concatenate([line + across, (line - across)[::-1]])


def blur(field: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur with standard deviation `radius` in pixels."""
    return ndimage.gaussian_filter(field, radius, mode="nearest", truncate=2.5)


class Canvas:
    """A square picture in the making, with the part each point belongs to.

    Coordinates run from 0 to 1, x to the right and y down; colours are RGB in [0, 1]. Part 0 is
    the surroundings and has no mask.

    Args:
        ground: float32 (S, S, 3), what everything else is painted over.
        parts: Names of the parts that may get a mask.
    """

    def __init__(self, ground: np.ndarray, parts: tuple[str, ...]) -> None:
        self.size = ground.shape[0]
        self.parts = parts
        self.scale = float(self.size * SUPERSAMPLING)
        side = self.size * SUPERSAMPLING
        picture = Image.fromarray(to_bytes(ground))
        self._image = picture.resize((side, side), Image.Resampling.NEAREST)
        self._owner = Image.new("L", (side, side), 0)
        self._pen = ImageDraw.Draw(self._image)
        self._mark = ImageDraw.Draw(self._owner)

    def _id(self, part: str) -> int:
        return 0 if part == "ground" else 1 + self.parts.index(part)

    def polygon(self, points: ArrayLike, colour: Colour, part: str | None = None) -> None:
        """Fill the outline `points` (n, 2).

        Args:
            points: Corners in units of the picture.
            colour: RGB in [0, 1].
            part: The part that now owns the points inside; None keeps the owner (shading and
                detail), ``"ground"`` takes them away from every part.
        """
        flat = (np.asarray(points) * self.scale).ravel().tolist()
        self._pen.polygon(flat, fill=to_fill(colour))
        if part is not None:
            self._mark.polygon(flat, fill=self._id(part))

    def shaded(
        self,
        points: np.ndarray,
        origin: np.ndarray,
        outer: Colour,
        inner: Colour,
        part: str | None = None,
        steps: int = 4,
        power: float = 1.0,
    ) -> None:
        """Fill an outline with a ramp of colour from its rim to the point `origin`."""
        points, origin = np.asarray(points), np.asarray(origin)
        for step in range(steps):
            share = step / steps
            colour = blend(outer, inner, (step / max(steps - 1, 1)) ** power)
            ring = origin + (1 - share) * (points - origin)
            self.polygon(ring, colour, part if step == 0 else None)

    def line(
        self, points: np.ndarray, colour: Colour, width: float, part: str | None = None
    ) -> None:
        """Stroke the points (n, 2) with a line `width` wide, in units of the picture."""
        flat = (np.asarray(points) * self.scale).ravel().tolist()
        pixels = max(1, round(width * self.scale))
        self._pen.line(flat, fill=to_fill(colour), width=pixels, joint="curve")
        if part is not None:
            self._mark.line(flat, fill=self._id(part), width=pixels, joint="curve")

    def dot(
        self,
        centre: np.ndarray | tuple[float, float],
        radius: float | tuple[float, float],
        colour: Colour,
        part: str | None = None,
    ) -> None:
        """Fill the upright ellipse around `centre` with one radius, or one each for x and y."""
        rx, ry = radius if isinstance(radius, tuple) else (radius, radius)
        x, y = float(centre[0]), float(centre[1])
        box = [v * self.scale for v in (x - rx, y - ry, x + rx, y + ry)]
        self._pen.ellipse(box, fill=to_fill(colour))
        if part is not None:
            self._mark.ellipse(box, fill=self._id(part))

    def soft(self, points: np.ndarray, colour: Colour, strength: float, softness: float) -> None:
        """Lay a blurred shape over the picture: a shadow or a glow; owners stay as they are.

        Args:
            points: Outline (n, 2).
            colour: RGB in [0, 1].
            strength: Opacity in [0, 1].
            softness: Standard deviation of the blur, in units of the picture.
        """
        points = np.asarray(points)
        margin = 2.5 * softness
        coarse = max(1.0, softness * self.size / 3)  # a blurred shape needs no fine pixels
        unit = self.size / coarse
        low = np.floor(np.clip(points.min(0) - margin, 0, 1) * unit)
        high = np.ceil(np.clip(points.max(0) + margin, 0, 1) * unit)
        wide, tall = (high - low).astype(int)
        if wide < 1 or tall < 1:
            return
        mask = Image.new("L", (int(wide), int(tall)), 0)
        inside = points * unit - low
        ImageDraw.Draw(mask).polygon(inside.ravel().tolist(), fill=round(255 * strength))
        mask = mask.filter(ImageFilter.GaussianBlur(softness * unit))
        zoom = coarse * SUPERSAMPLING
        left, top, right, bottom = (int(round(v * zoom)) for v in (*low, *high))
        mask = mask.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        self._image.paste(to_fill(colour), (left, top, right, bottom), mask)

    def own(self, points: np.ndarray, part: str) -> None:
        """Give the inside of an outline (n, 2) to `part` without painting anything."""
        flat = (np.asarray(points) * self.scale).ravel().tolist()
        self._mark.polygon(flat, fill=self._id(part))

    def own_pixels(self, inside: np.ndarray, part: str) -> None:
        """Give the pixels that are true in `inside`, bool (S, S), to `part`."""
        mask = Image.fromarray(inside.astype(np.uint8) * 255)
        mask = mask.resize(self._owner.size, Image.Resampling.NEAREST)
        self._owner.paste(self._id(part), (0, 0), mask)

    def owners(self) -> np.ndarray:
        """Part number at each pixel's centre, uint8 (S, S); 0 is the surroundings."""
        half = SUPERSAMPLING // 2
        return np.asarray(self._owner)[half::SUPERSAMPLING, half::SUPERSAMPLING].copy()

    def pixels(self) -> np.ndarray:
        """The colours, reduced to the picture's size, float32 (S, S, 3) in [0, 1]."""
        return np.asarray(self._image.reduce(SUPERSAMPLING), np.float32) / 255

    def cutout(self) -> tuple[np.ndarray, np.ndarray]:
        """What is painted on a black ground, cut out along the parts.

        Returns:
            Colours, float32 (S, S, 3), and how far each pixel is covered, float32 (S, S) in [0, 1].
        """
        owned = self._owner.point(lambda number: 255 if number else 0)
        cover = np.asarray(owned.reduce(SUPERSAMPLING), np.float32) / 255
        return np.clip(self.pixels() / np.maximum(cover, 1e-3)[..., None], 0, 1), cover


def to_fill(colour: Colour) -> tuple[int, int, int]:
    """RGB in [0, 1] as the 8-bit triple Pillow wants."""
    r, g, b = (min(255, max(0, round(255 * float(v)))) for v in colour)
    return r, g, b


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] as uint8, rounded and clipped."""
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def circle(
    centre: np.ndarray | tuple[float, float], radius: float | tuple[float, float], count: int = 28
) -> np.ndarray:
    """Points (count, 2) on the ellipse around `centre`."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radii = radius if isinstance(radius, tuple) else (radius, radius)
    return np.asarray(centre) + np.stack([np.cos(angle), np.sin(angle)], 1) * np.asarray(radii)


def developed(
    pixels: np.ndarray, rng: np.random.Generator, grain: float = 0.015, corners: float = 0.15
) -> np.ndarray:
    """What a camera adds last: a light cast, darker corners, grain.

    Args:
        pixels: float32 (S, S, 3) in [0, 1].
        rng: Source of the cast and the grain.
        grain: Standard deviation of the grain.
        corners: How much darker the corners are, as a share.

    Returns:
        uint8 (S, S, 3).
    """
    size = pixels.shape[0]
    x, y = grid(size)
    fall = 1 - corners * 2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    cast = (1 + rng.normal(0, 0.025, 3) + rng.normal(0.0, 0.05)).astype(np.float32)
    lit = pixels * fall[..., None]
    lit *= cast
    lit += (grain * rng.standard_normal((size, size), np.float32))[..., None]
    return to_bytes(lit)
