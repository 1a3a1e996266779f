"""Flowers: a blossom decides the class; stem, leaves, ground and passers-by do not.

Mirrors the Flowers photographs: the same five classes in like shares. Colours overlap between
classes (a white daisy, a white tulip, a white rose), so shape has to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from siamcam_lib.datasets.scenes.canvas import (
    Canvas,
    blend,
    circle,
    curve,
    developed,
    generator,
    grid,
    hexa,
    noise,
    pick,
    ribbon,
    slope,
    smoothstep,
    to_bytes,
    to_fill,
    vary,
)

CLASSES = ("Daisy", "Dandelion", "Rose", "Sunflower", "Tulip")
SHARES = (0.18, 0.24, 0.18, 0.17, 0.23)
COUNT = 400
PARTS = ("deciding", "second", "stem", "distractor", "shortcut", "shared")

LEAF_GREENS = ("3f7d3a", "5a9a45", "2f6b46", "6f9a3e", "4d8a5c")


def draw(
    label: int, second: int | None, seed: int, style: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one flower, or two.

    Args:
        label: Class of the deciding blossom.
        second: Class of another blossom as prominent as the first, or None.
        seed: Seed of the plant.
        style: Seed of the ground.
        size: Side S in pixels.

    Returns:
        The picture, uint8 (S, S, 3), and the number of the part at each pixel, uint8 (S, S).
    """
    rng = generator(1, seed, label)
    around = generator(2, style)
    ground = GROUNDS[int(around.integers(len(GROUNDS)))](around, size)
    canvas = Canvas(ground, PARTS)

    spots = _places(rng, second is not None)
    blossoms = [("deciding", label, *spots[0])]
    if second is not None:
        blossoms.append(("second", second, *spots[1]))

    litter(canvas, rng, count=int(rng.integers(0, 4)))
    axes = [_stem(canvas, rng, centre, radius) for _, _, centre, radius in blossoms]
    for (part, kind, centre, radius), axis in zip(blossoms, axes, strict=True):
        canvas.soft(circle(centre + [0.02, 0.035], 0.85 * radius), (0.02, 0.06, 0.03), 0.45, 0.03)
        BLOSSOMS[kind](canvas, rng, centre, radius, axis, part)
    blades(canvas, rng, count=int(rng.integers(0, 10)))

    owners = canvas.owners()
    pixels = canvas.pixels()
    x, y = grid(size)
    for part, _, centre, radius in blossoms:
        # Light falls from the upper left: a gentle ramp makes the flat drawing round.
        side = ((x - centre[0]) + 1.3 * (y - centre[1])) / radius
        lit = np.where(owners == 1 + PARTS.index(part), 1.02 - 0.13 * side, 1.0)
        pixels *= lit.astype(np.float32)[..., None]
    return developed(pixels, rng, grain=float(rng.uniform(0.006, 0.02))), owners


def _places(rng: np.random.Generator, two: bool) -> list[tuple[np.ndarray, float]]:
    if not two:
        centre = np.array([rng.uniform(0.34, 0.66), rng.uniform(0.3, 0.52)])
        return [(centre, float(rng.uniform(0.09, 0.25)))]
    side = 1 if rng.random() < 0.5 else -1
    return [
        (
            np.array([0.5 + s * rng.uniform(0.21, 0.27), rng.uniform(0.28, 0.54)]),
            float(rng.uniform(0.15, 0.2)),
        )
        for s in (side, -side)
    ]


# --- grounds -----------------------------------------------------------------------------------


def _meadow(rng: np.random.Generator, size: int) -> np.ndarray:
    green = vary(rng, hexa("5f8f3c"), 0.05)
    x, y = grid(size)
    base = blend(
        green * 1.25 + 0.05, green * 0.55, np.clip(y + 0.15 * noise(rng, size, 4, 2), 0, 1)
    )
    picture = Image.fromarray(to_bytes(base))
    pen = ImageDraw.Draw(picture)
    n = 150
    foot = np.stack([rng.uniform(-0.1, 1.1, n), rng.uniform(0.25, 1.25, n)], 1)
    tip = foot + np.stack([rng.normal(0, 0.08, n), -rng.uniform(0.12, 0.42, n)], 1)
    tone = rng.uniform(0.55, 1.5, n)
    for i in np.argsort(foot[:, 1]):
        colour = to_fill(green * tone[i] + [0.03 * tone[i], 0.02, -0.02])
        line = (np.array([foot[i], tip[i]]) * size).ravel().tolist()
        pen.line(line, fill=colour, width=max(1, round(size / 120)))
    for _ in range(int(rng.integers(0, 14))):
        spot = rng.uniform(0, 1, 2) * [1, 0.7]
        r = rng.uniform(0.008, 0.02)
        colour = to_fill(pick(rng, "f4e9a0", "ffffff", "d9a4d6", "f0c34a"))
        box = ((np.array([spot - r, spot + r])) * size).ravel().tolist()
        pen.ellipse(box, fill=colour)
    return _float(picture.filter(ImageFilter.GaussianBlur(size / 224 * rng.uniform(1.2, 3.0))))


def _bokeh(rng: np.random.Generator, size: int) -> np.ndarray:
    dark = vary(rng, pick(rng, "274a2e", "3d4f23", "1f4a4a", "4a3b2a"), 0.03)
    light = vary(rng, pick(rng, "a9c46c", "e0c878", "9fcfa8", "e8b48a"), 0.05)
    base = blend(dark, light, 0.35 + 0.4 * noise(rng, size, 2, 2))
    total = Image.fromarray(to_bytes(base))
    for _ in range(2):
        glow = Image.new("RGB", (size, size))
        pen = ImageDraw.Draw(glow)
        for _ in range(int(rng.integers(6, 14))):
            spot, r = rng.uniform(0, 1, 2), rng.uniform(0.03, 0.11)
            colour = to_fill(vary(rng, light, 0.08) * rng.uniform(0.15, 0.5))
            box = (np.array([spot - r, spot + r]) * size).ravel().tolist()
            pen.ellipse(box, fill=colour)
        glow = glow.filter(ImageFilter.GaussianBlur(size / 224 * rng.uniform(1.2, 2.5)))
        total = ImageChops.screen(total, glow)
    return _float(total)


def _sky(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = grid(size)
    top = vary(rng, hexa("3f86c8"), 0.05)
    base = blend(top, hexa("cfe6f2"), np.clip(1.15 * y, 0, 1))
    stretched = noise(rng, size, 3, 4) + 0.6 * (0.4 - y)
    cloud = smoothstep(stretched, rng.uniform(-0.1, 0.35), 1.0)
    base = blend(base, hexa("ffffff"), 0.85 * cloud)
    far = 0.72 + 0.05 * noise(rng, size, 2)[size // 2]
    near = 0.84 + 0.06 * noise(rng, size, 3)[size // 2]
    hill = vary(rng, hexa("7fa070"), 0.04)
    field = vary(rng, pick(rng, "6f9a3e", "c9b458", "8aa64a"), 0.04)
    soft = 0.012
    base = blend(base, hill, smoothstep(y - far[None], -soft, soft))
    rough = field * (1 + 0.25 * noise(rng, size, 24, 2))[..., None]
    share = smoothstep(y - near[None], -soft, soft)[..., None]
    return base + share * (rough - base)


def _soil(rng: np.random.Generator, size: int) -> np.ndarray:
    earth = vary(rng, pick(rng, "6b4a32", "8a6a48", "54402f"), 0.03)
    relief = noise(rng, size, 7, 5)
    lit = slope(relief, 2)
    base = earth * (1 + 0.25 * relief + 0.9 * lit)[..., None]
    picture = Image.fromarray(to_bytes(base))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(10, 30))):
        spot = rng.uniform(0, 1, 2)
        r = rng.uniform(0.006, 0.025) * np.array([1, rng.uniform(0.6, 0.9)])
        stone = vary(rng, hexa("9a8f83"), 0.08)
        for shift, tone in ((0.35, 0.35), (0.0, 0.85), (-0.25, 1.1)):
            grow = 1.0 if shift >= 0 else 0.6
            at = spot + shift * r
            box = (np.array([at - grow * r, at + grow * r]) * size).ravel().tolist()
            pen.ellipse(box, fill=to_fill(stone * tone))
    return _float(picture.filter(ImageFilter.GaussianBlur(size / 224 * 0.8)))


def _wall(rng: np.random.Generator, size: int) -> np.ndarray:
    plaster = vary(rng, pick(rng, "d9c7ae", "b8c4c0", "c99f85", "a8b29a"), 0.03)
    joint = plaster * 0.72
    picture = Image.new("RGB", (size, size), to_fill(joint))
    pen = ImageDraw.Draw(picture)
    tall, wide, gap = 0.085, 0.19, 0.008
    for row in range(13):
        for col in range(-1, 7):
            x0, y0 = (col + 0.5 * (row % 2)) * wide, row * tall
            tone = plaster * rng.uniform(0.88, 1.08)
            box = (np.array([x0 + gap, y0 + gap, x0 + wide, y0 + tall]) * size).tolist()
            pen.rectangle(box, fill=to_fill(tone))
    base = _float(picture.filter(ImageFilter.GaussianBlur(size / 224 * rng.uniform(1.0, 2.0))))
    x, y = grid(size)
    light = 1.02 + 0.07 * noise(rng, size, 3, 2) - 0.3 * (x + y - 1) + 0.05 * noise(rng, size, 40)
    return base * light[..., None]


GROUNDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _meadow,
    _bokeh,
    _sky,
    _soil,
    _wall,
)


def _float(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32) / 255


# --- stems, blades, passers-by -----------------------------------------------------------------


def _stem(
    canvas: Canvas, rng: np.random.Generator, centre: np.ndarray, radius: float
) -> np.ndarray:
    """Stem and leaves; returns the unit vector from the blossom's foot to its top."""
    green = vary(rng, pick(rng, *LEAF_GREENS), 0.04)
    foot = np.array([centre[0] + rng.normal(0, 0.12), 1.06])
    sway = np.array([rng.normal(0, 0.06), 0.3])
    line = curve([centre, centre + sway, foot - [0, 0.25], foot], 26)
    width = radius * rng.uniform(0.045, 0.07) + 0.002
    wide = np.linspace(width, 1.5 * width, len(line))
    for _ in range(int(rng.integers(2, 5))):
        at = int(rng.integers(9, len(line) - 3))
        _leaf(canvas, rng, line[at], green, 1 if rng.random() < 0.5 else -1)
    canvas.polygon(ribbon(line, wide), green * 0.72, "stem")
    canvas.polygon(ribbon(line - [0.25 * width, 0], 0.62 * wide), green)
    canvas.polygon(ribbon(line - [0.45 * width, 0], 0.2 * wide), green * 1.25)
    axis = line[0] - line[5]
    return axis / np.hypot(*axis)


def _leaf(
    canvas: Canvas, rng: np.random.Generator, root: np.ndarray, green: np.ndarray, side: int
) -> None:
    long = rng.uniform(0.14, 0.27)
    angle = -rng.uniform(0.1, 1.0)
    tip = root + long * np.array([side * np.cos(angle), np.sin(angle)])
    bend = root + 0.6 * long * np.array([side * np.cos(angle - 0.5), np.sin(angle - 0.5)])
    spine = curve([root, bend, tip], 14)
    t = np.linspace(0, 1, 14)
    wide = long * rng.uniform(0.11, 0.2) * np.sin(np.pi * t**0.8) ** 0.9 + 1e-4
    tone = vary(rng, green, 0.03)
    canvas.soft(ribbon(spine + [0.012, 0.02], wide), (0.02, 0.05, 0.02), 0.3, 0.012)
    canvas.polygon(ribbon(spine, wide), tone * 0.8, "stem")
    across = np.gradient(spine, axis=0)
    across = np.stack([-across[:, 1], across[:, 0]], 1)
    across /= np.hypot(across[:, 0], across[:, 1])[:, None]
    upper = np.concatenate([spine, (spine - side * across * -wide[:, None] * 0.94)[::-1]])
    canvas.polygon(upper, tone * 1.08)
    for i in (3, 5, 7, 9):
        for way in (-1, 1):
            end = spine[min(i + 2, 13)] + way * across[i] * 0.75 * wide[i]
            canvas.line(np.array([spine[i], end]), tone * 0.72, 0.0018)
    canvas.line(spine, blend(tone, hexa("e8f0b0"), 0.45), 0.004)


def blades(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Blades of grass before everything else: they hide a little of the flower."""
    for _ in range(count):
        foot = np.array([rng.uniform(0, 1), 1.05])
        tip = foot + [rng.normal(0, 0.16), -rng.uniform(0.25, 0.75)]
        bend = 0.5 * (foot + tip) + [rng.normal(0, 0.06), 0]
        line = curve([foot, bend, tip], 16)
        green = vary(rng, pick(rng, *LEAF_GREENS), 0.06)
        wide = np.linspace(rng.uniform(0.006, 0.012), 0.0008, 16)
        canvas.polygon(ribbon(line, wide), green * 0.8, "distractor")
        canvas.polygon(ribbon(line - [0.002, 0], 0.45 * wide), green * 1.15)


def litter(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Small blossoms of no class, berries and ladybirds near the flower."""
    for _ in range(count):
        spot = np.array([rng.uniform(0.05, 0.95), rng.uniform(0.1, 0.95)])
        r = float(rng.uniform(0.022, 0.05))
        kind = int(rng.integers(3))
        canvas.soft(circle(spot + [0.3 * r, 0.5 * r], r), (0, 0.03, 0), 0.4, 0.012)
        if kind == 0:
            hue = vary(rng, pick(rng, "6f86d6", "b46fc0", "e58fb0", "f2f0e6"), 0.04)
            turn = rng.uniform(0, 2)
            for k in range(5):
                at = spot + 0.6 * r * np.array(
                    [np.cos(turn + 1.2566 * k), np.sin(turn + 1.2566 * k)]
                )
                outline = circle(at, 0.5 * r, 14)
                canvas.shaded(outline, spot, hue, hue * 0.75, "distractor", steps=3)
            canvas.dot(spot, 0.22 * r, hexa("f0d050"))
        elif kind == 1:
            hue = vary(rng, pick(rng, "c0392b", "34457a", "d0762b"), 0.04)
            for k in range(3):
                at = spot + 0.6 * r * np.array([np.cos(2.1 * k), np.sin(2.1 * k)])
                canvas.shaded(
                    circle(at, 0.55 * r), at - 0.2 * r, hue * 0.6, hue * 1.2, "distractor"
                )
                canvas.dot(at - 0.2 * r, 0.1 * r, (1, 1, 1))
        else:
            r *= 0.8
            canvas.dot(spot + [0.75 * r, 0], (0.45 * r, 0.5 * r), (0.1, 0.08, 0.08), "distractor")
            canvas.shaded(
                circle(spot, (r, 0.8 * r)),
                spot - 0.3 * r,
                hexa("a02018"),
                hexa("e84a35"),
                "distractor",
            )
            canvas.line(np.array([spot - [r, 0], spot + [0.8 * r, 0]]), (0.12, 0.05, 0.05), 0.003)
            for dx, dy in ((-0.4, -0.35), (0.3, -0.4), (-0.35, 0.4), (0.3, 0.4)):
                canvas.dot(spot + r * np.array([dx, dy]), 0.17 * r, (0.1, 0.05, 0.05))


# --- blossoms ----------------------------------------------------------------------------------

Blossom = Callable[[Canvas, np.random.Generator, np.ndarray, float, np.ndarray, str], None]


def _petal(blunt: float, broad: float, notch: float = 0.0) -> np.ndarray:
    """Outline (18, 2) of a petal of length 1 along x; `blunt` moves its widest point outwards."""
    t = np.linspace(0, 1, 10)
    width = t**blunt * (1 - t) ** (1 / (1 + 2 * blunt))
    width *= broad / width.max()
    x = t.copy()
    x[-1] -= notch
    upper = np.stack([x, width], 1)
    lower = np.stack([x, -width], 1)[-2:0:-1]
    return np.concatenate([upper, lower])


def _tilted(rng: np.random.Generator, least: float) -> np.ndarray:
    """The plane of a flat blossom as seen: a (2, 2) matrix that squeezes one direction."""
    turn, squeeze = rng.uniform(0, np.pi), rng.uniform(least, 1.0)
    c, s = np.cos(turn), np.sin(turn)
    rot = np.array([[c, -s], [s, c]])
    return rot @ np.diag([1.0, squeeze]) @ rot.T


def _ring(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    plane: np.ndarray,
    outline: np.ndarray,
    *,
    count: int,
    length: float,
    outer: np.ndarray,
    inner: np.ndarray,
    part: str,
    uneven: float = 0.08,
    steps: int = 4,
    vein: float = 0.0,
) -> None:
    """A ring of petals around `centre`, each with a ramp of colour and a dark edge."""
    angle = 2 * np.pi * (np.arange(count) + rng.uniform(-0.22, 0.22, count)) / count + rng.uniform(
        0, 6
    )
    long = length * (1 + uneven * rng.normal(0, 1, count))
    wide = length * (1 + 0.5 * uneven * rng.normal(0, 1, count))
    bend = rng.normal(0, 0.07, count)
    tone = 1 + 0.05 * rng.normal(0, 1, count)
    local = np.stack(
        [
            outline[None, :, 0] * long[:, None],
            outline[None, :, 1] * wide[:, None]
            + bend[:, None] * outline[None, :, 0] ** 2 * long[:, None],
        ],
        -1,
    )
    c, s = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)  # (count, 2, 2)
    shapes = centre + local @ np.swapaxes(turn, 1, 2) @ plane.T
    for k in rng.permutation(count):
        shape = shapes[k]
        canvas.polygon(centre + 1.02 * (shape - centre) + [0.0025, 0.004], inner * 0.55, part)
        canvas.shaded(shape, centre, outer * tone[k], inner * tone[k], part, steps)
        if vein:
            tip = shape[np.argmax(((shape - centre) ** 2).sum(1))]
            for f in (0.9, 0.8):
                canvas.line(
                    np.array([centre, centre + f * (tip - centre)]), outer * tone[k] * vein, 0.0016
                )


def _seeds(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    plane: np.ndarray,
    radius: float,
    count: int,
    colours: tuple[np.ndarray, np.ndarray],
    part: str,
) -> None:
    """A disc of florets on Vogel's spiral, from the first colour inside to the second outside."""
    rim = centre + circle((0, 0), 1.05 * radius, 40) @ plane.T
    canvas.soft(rim + [0.004, 0.008], colours[0] * 0.3, 0.5, 0.012)
    canvas.polygon(rim, blend(colours[0], colours[1], 0.6) * 0.75, part)
    k = np.arange(count)
    far = np.sqrt((k + 0.5) / count)
    angle = 2.399963 * k
    spots = np.stack([np.cos(angle), np.sin(angle)], 1) * (far * radius)[:, None]
    r = 0.95 * radius / np.sqrt(count)
    for i in k:
        # A dome: florets towards the light are brighter.
        dome = 1.0 - 0.22 * (spots[i, 0] + spots[i, 1]) / radius + rng.normal(0, 0.08)
        colour = blend(colours[0], colours[1], far[i] ** 1.5) * dome
        canvas.dot(centre + plane @ spots[i], r, colour)


def _daisy(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    axis: np.ndarray,
    part: str,
) -> None:
    plane = _tilted(rng, 0.45)
    hues = ("fbfaf6", "fbfaf6", "f6efd6", "f3b7c9", "f6d24a", "e8923a")
    white = vary(rng, pick(rng, *hues), 0.02)
    shade = blend(white, hexa("8d97b8"), 0.45) if white[2] > 0.5 else white * [0.85, 0.65, 0.5]
    outline = _petal(rng.uniform(0.7, 1.1), rng.uniform(0.11, 0.16), 0.03)
    n = int(rng.integers(13, 20))
    for length, tone in ((1.0, 0.9), (0.92, 1.0)):
        _ring(
            canvas,
            rng,
            centre,
            plane,
            outline,
            count=n,
            length=radius * length,
            outer=white * tone,
            inner=shade * tone,
            part=part,
            vein=0.9,
        )
    yellow = vary(rng, hexa("f2c12e" if rng.random() < 0.65 else "8a5a2a"), 0.03)
    _seeds(
        canvas,
        rng,
        centre,
        plane,
        radius * rng.uniform(0.2, 0.34),
        55,
        (yellow * [0.85, 0.85, 0.6], yellow),
        part,
    )


def _sunflower(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    axis: np.ndarray,
    part: str,
) -> None:
    plane = _tilted(rng, 0.45)
    gold = vary(rng, pick(rng, "f6b916", "f8cf2e", "ee9a1a", "f3d874", "f4efdc", "b5482a"), 0.03)
    pale = gold[2] > 0.6  # with a golden disc as well it would be a daisy
    outline = _petal(rng.uniform(0.55, 0.8), rng.uniform(0.1, 0.15))
    n = int(rng.integers(15, 21))
    for length, tone in ((1.0, 0.88), (0.9, 1.0)):
        _ring(
            canvas,
            rng,
            centre,
            plane,
            outline,
            count=n,
            length=radius * length,
            outer=gold * tone,
            inner=gold * tone * [0.85, 0.6, 0.4],
            part=part,
            vein=0.82,
        )
    _seeds(
        canvas,
        rng,
        centre,
        plane,
        radius * rng.uniform(0.3, 0.48),
        110,
        (hexa("5a3d1e"), hexa("3a2312") if pale or rng.random() < 0.6 else hexa("b8862a")),
        part,
    )


def _dandelion(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    axis: np.ndarray,
    part: str,
) -> None:
    if rng.random() < 0.3:
        _clock(canvas, rng, centre, radius * 0.95, part)
        return
    plane = _tilted(rng, 0.5)
    yellow = vary(rng, pick(rng, "f7d316", "fae04a", "f2bd1c"), 0.03)
    size = radius * 0.88
    outline = np.array(
        [
            [0, 0.03],
            [0.5, 0.055],
            [0.97, 0.05],
            [1.0, 0.02],
            [0.96, 0.0],
            [1.0, -0.025],
            [0.96, -0.05],
            [0.5, -0.055],
            [0, -0.03],
        ]
    )
    for length, n, tone in ((1.0, 26, 0.82), (0.86, 24, 0.93), (0.66, 20, 1.0), (0.44, 15, 1.04)):
        _ring(
            canvas,
            rng,
            centre,
            plane,
            outline,
            count=n,
            length=size * length,
            outer=yellow * tone,
            inner=yellow * tone * [0.88, 0.68, 0.3],
            part=part,
            uneven=0.09,
            steps=2,
        )
    for _ in range(16):
        at = plane @ (rng.normal(0, 0.09, 2) * size)
        canvas.line(
            np.array([centre + 0.5 * at, centre + 1.6 * at]),
            yellow * [0.9, 0.72, 0.35],
            0.035 * size,
        )


def _clock(
    canvas: Canvas, rng: np.random.Generator, centre: np.ndarray, radius: float, part: str
) -> None:
    """The dandelion's seed head: a ball of parachutes on fine threads."""
    pale = vary(rng, hexa("eef0ea"), 0.02)
    canvas.soft(circle(centre, 0.8 * radius), pale, 0.42, 0.16 * radius)
    canvas.own(circle(centre, radius, 48), part)  # the ball is airy, but it is one part
    n = 64
    k = np.arange(n)
    far = np.sqrt((k + 0.5) / n) ** 0.85
    spots = centre + radius * 0.86 * far[:, None] * np.stack(
        [np.cos(2.399963 * k), np.sin(2.399963 * k)], 1
    )
    for i in k:
        canvas.line(np.array([centre, spots[i]]), pale * rng.uniform(0.6, 0.8), 0.0015)
    for i in k:
        turn = rng.uniform(0, 3)
        tone = pale * rng.uniform(0.85, 1.05)
        for arm in range(4):
            a = turn + arm * np.pi / 4
            d = 0.14 * radius * np.array([np.cos(a), np.sin(a)])
            canvas.line(np.array([spots[i] - d, spots[i] + d]), tone, 0.0015)
    canvas.shaded(
        circle(centre, 0.16 * radius), centre - 0.04 * radius, hexa("6b5b3a"), hexa("b59b6a")
    )


def _rose(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    axis: np.ndarray,
    part: str,
) -> None:
    hues = ("c81e3a", "e05a7a", "f2a7b5", "f6efe2", "f0b23e", "e8794a")
    hue = vary(rng, pick(rng, *hues), 0.03)
    if rng.random() < 0.35:
        _bud(canvas, rng, centre, radius, axis, hue, part)
        return
    rim = blend(hue, (1, 1, 1), 0.28)
    deep = hue * [0.55, 0.42, 0.45]
    plane = _tilted(rng, 0.6)
    radius = 0.9 * radius
    t = np.linspace(-1, 1, 11)
    turn = rng.uniform(0, 6)
    for reach, count, tone in (
        (1.0, 5, 0.88),
        (0.84, 5, 0.94),
        (0.66, 5, 1.0),
        (0.49, 4, 0.97),
        (0.33, 3, 0.9),
        (0.19, 3, 0.8),
    ):
        turn += 0.6
        for k in range(count):
            middle = turn + 2 * np.pi * k / count + rng.normal(0, 0.1)
            spread = 1.15 * np.pi / count * rng.uniform(1.0, 1.25)
            far = reach * radius * rng.uniform(0.93, 1.05)
            # A broad arc with rounded shoulders and a slight peak, closed at the heart.
            long = far * (1 - 0.26 * t**4 + 0.035 * (1 - np.abs(t)) ** 2)
            arc = (
                np.stack([np.cos(middle + spread * t), np.sin(middle + spread * t)], 1)
                * long[:, None]
            )
            shape = centre + np.concatenate([arc, 0.02 * radius * arc[::-5] / far]) @ plane.T
            canvas.polygon(
                centre + 1.03 * (shape - centre) + [0.002, 0.004], deep * 0.75 * tone, part
            )
            tint = tone * (1 + rng.normal(0, 0.03))
            canvas.polygon(shape, rim * tint, part)
            canvas.shaded(
                centre + 0.94 * (shape - centre), centre, hue * tint, deep * tint, None, 4, 1.2
            )
    spiral = np.linspace(0, 9, 30)
    swirl = (
        np.stack([np.cos(spiral + turn), np.sin(spiral + turn)], 1)
        * (0.013 * radius * spiral)[:, None]
    )
    canvas.line(centre + swirl @ plane.T, deep * 0.7, 0.02 * radius)


def _upright(
    rng: np.random.Generator, centre: np.ndarray, radius: float, axis: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Foot of a blossom seen from the side, and its frame: rows are one width and one height."""
    up = np.array([axis[0] + rng.normal(0, 0.12), axis[1]])
    up /= np.hypot(*up)
    return centre - 0.85 * radius * up, np.stack([np.array([-up[1], up[0]]), up]) * radius


def _sheet(
    canvas: Canvas,
    frame: tuple[np.ndarray, np.ndarray],
    petal: tuple[float, float, float, float],
    colours: tuple[np.ndarray, np.ndarray, np.ndarray],
    part: str,
) -> tuple[np.ndarray, np.ndarray]:
    """A cupped petal (middle, half width, top, lean of its tip); returns its root and its peak."""
    foot, axes = frame
    middle, half, top, tip = petal
    edge, hue, deep = colours
    peak = (middle + tip, top)
    left = curve(
        [
            (0, 0),
            (middle - 1.25 * half, 0.15),
            (middle - 1.15 * half + 0.4 * tip, 0.95 * top),
            peak,
        ],
        14,
    )
    right = curve(
        [
            peak,
            (middle + 1.15 * half + 0.4 * tip, 0.95 * top),
            (middle + 1.25 * half, 0.15),
            (0, 0),
        ],
        14,
    )
    shape = foot + np.concatenate([left, right[1:-1]]) @ axes
    root = foot + np.array([0.4 * middle, 0.25]) @ axes
    heart = foot + np.array([0.0, 0.85]) @ axes
    canvas.polygon(heart + 1.025 * (shape - heart) + [0.001, 0.003], deep * 0.6, part)
    canvas.polygon(shape, edge, part)
    canvas.shaded(root + 0.93 * (shape - root), root, hue, deep, None, 9, 1.3)
    return root, foot + np.array([middle + tip, 0.9 * top]) @ axes


def _tulip(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    axis: np.ndarray,
    part: str,
) -> None:
    hues = ("d8283c", "f2c230", "e87aa8", "8a4aa8", "f4eee4", "ee7a38")
    hue = vary(rng, pick(rng, *hues), 0.03)
    edge = blend(hue, (1, 1, 0.85), 0.3)
    deep = hue * [0.66, 0.55, 0.6]
    frame = _upright(rng, centre, radius, axis)
    open_ = rng.uniform(0.0, 0.32)
    wide = rng.uniform(0.62, 0.8)
    sheets = (
        ((-0.28 * wide, 0.5 * wide, 1.72, -0.1), 0.62),
        ((0.28 * wide, 0.5 * wide, 1.74, 0.1), 0.66),
        ((-0.5 * wide, 0.52 * wide, 1.62, -open_), 0.88),
        ((0.5 * wide, 0.52 * wide, 1.6, open_), 0.82),
        ((0.02, 0.6 * wide, 1.5 - 0.3 * open_, 0.0), 1.0),
    )
    for petal, tone in sheets:
        colours = (edge * tone, hue * tone, deep * tone)
        root, peak = _sheet(canvas, frame, petal, colours, part)
        for side in (-0.5, 0.0, 0.5):
            end = peak + np.array([side * petal[1], -0.12 * abs(side)]) @ frame[1]
            mid = 0.5 * (root + end) + np.array([0.5 * side * petal[1], 0]) @ frame[1]
            canvas.line(curve([root, mid, end], 10), hue * tone * 0.86, 0.0018)


def _bud(
    canvas: Canvas,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: float,
    axis: np.ndarray,
    hue: np.ndarray,
    part: str,
) -> None:
    """A rose that has not opened: petals wound round each other, sepals below."""
    frame = _upright(rng, centre, radius, axis)
    foot, axes = frame
    rim, deep = blend(hue, (1, 1, 1), 0.28), hue * [0.55, 0.42, 0.45]
    way = rng.choice([-1.0, 1.0])
    wide = rng.uniform(0.6, 0.78)
    sheets = (
        ((0.0, 0.8 * wide, 1.66, 0.05 * way), 0.7),
        ((-0.25 * way * wide, 0.55 * wide, 1.68, 0.1 * way), 0.8),
        ((0.3 * way * wide, 0.58 * wide, 1.56, -0.12 * way), 0.88),
        ((-0.4 * way * wide, 0.66 * wide, 1.42, 0.24 * way), 0.95),
        ((0.35 * way * wide, 0.72 * wide, 1.22, -0.3 * way), 1.0),
    )
    for petal, tone in sheets:
        _sheet(canvas, frame, petal, (rim * tone, hue * tone, deep * tone), part)
    green = vary(rng, hexa("4f8a4a"), 0.04)
    for lean, tall in ((-0.75, 0.5), (0.75, 0.55), (-0.3, 0.62), (0.28, 0.6)):
        spine = foot + curve([(0, -0.04), (0.8 * lean, 0.1), (lean, tall)], 8) @ axes
        wide_ = radius * 0.11 * (1 - np.linspace(0, 0.98, 8))
        canvas.polygon(ribbon(spine, wide_), green * 0.7, part)
        canvas.polygon(ribbon(spine, 0.6 * wide_), green * 1.05)


BLOSSOMS: tuple[Blossom, ...] = (_daisy, _dandelion, _rose, _sunflower, _tulip)
