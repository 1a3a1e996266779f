"""Lesions: a mole on skin; asymmetry, border, colours and size make it benign or malignant.

Mirrors the skin-lesion photographs and the ABCD rule of dermoscopy. Each trait follows a hidden
severity with noise of its own, so no single trait decides and the classes overlap a little.
Hairs, ruler marks, colour patches, ink and the dark rim of the instrument belong to no class.
"""

from __future__ import annotations

import numpy as np

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
    vary,
)

CLASSES = ("Benign", "Malignant")
SHARES = (0.5, 0.5)
COUNT = 300
PARTS = ("deciding", "second", "distractor", "shortcut", "shared")

SEVERITY = (0.2, 0.8)
"""Mean of the hidden severity of each class."""
SPREAD = 0.085
"""Its standard deviation; each trait adds as much of its own."""

SKINS = ("f0c4ae", "e8b39a", "d99c84", "eec9bf", "c98d6c", "a8714f", "e6b9c4")
BROWNS = ("8a5a34", "7a4a2a", "9a6a44", "6a4028", "a4624a")


def draw(
    label: int, second: int | None, seed: int, style: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a mole, or two, on a patch of skin.

    Args:
        label: Class of the deciding mole: 0 benign, 1 malignant.
        second: Class of another mole as prominent as the first, or None.
        seed: Seed of the mole and of what lies over it.
        style: Seed of the skin.
        size: Side S in pixels.

    Returns:
        The picture, uint8 (S, S, 3), and the number of the part at each pixel, uint8 (S, S).
    """
    rng = generator(3, seed, label)
    around = generator(4, style)
    pixels = _skin(around, size)
    moles = []
    if second is None:
        centre = rng.uniform(0.4, 0.6, 2)
        moles.append(("deciding", label, centre, 1.0))
    else:
        side = 1 if rng.random() < 0.5 else -1
        for part, kind, way in (("deciding", label, side), ("second", second, -side)):
            centre = np.array([0.5 + 0.24 * way, 0.5]) + rng.uniform(-0.04, 0.04, 2) * [1, 4]
            moles.append((part, kind, centre, 0.72))
    claims = []
    for part, kind, centre, scale in moles:
        pixels, inside = _mole(pixels, rng, kind, centre, scale)
        claims.append((part, inside))

    canvas = Canvas(pixels, PARTS)
    for part, inside in claims:
        canvas.own_pixels(inside, part)
    tool = rng.random()
    if tool < 0.16:
        _ruler(canvas, rng)
    elif tool < 0.3:
        _patch(canvas, rng)
    elif tool < 0.38:
        _ink(canvas, rng)
    _hairs(canvas, rng)
    if rng.random() < 0.25:
        _bubbles(canvas, rng)

    owners, pixels = canvas.owners(), canvas.pixels()
    if rng.random() < 0.22:
        x, y = grid(size)
        far = np.hypot(x - rng.uniform(0.46, 0.54), y - rng.uniform(0.46, 0.54))
        rim = smoothstep(far, 0.53, rng.uniform(0.58, 0.7))
        pixels *= (1 - 0.96 * rim)[..., None]
    return developed(pixels, rng, grain=float(rng.uniform(0.006, 0.02)), corners=0.2), owners


def _skin(rng: np.random.Generator, size: int) -> np.ndarray:
    tone = vary(rng, pick(rng, *SKINS), 0.03)
    x, y = grid(size)
    blotch = noise(rng, size, 3, 3)
    red = tone * np.array([1.0, 0.86, 0.84], np.float32)
    pale = np.minimum(tone * np.array([1.04, 1.07, 1.08], np.float32), 1)
    base = blend(red, pale, 0.5 + 0.55 * blotch)
    # Furrows: two families of wavy lines that cross, as on the back of a hand, faint.
    turn = rng.uniform(0, np.pi)
    warp = 0.05 * noise(rng, size, 5, 2)
    relief = 0.45 * noise(rng, size, 55, 1)
    for angle in (turn, turn + rng.uniform(0.9, 1.4)):
        phase = (x * np.cos(angle) + y * np.sin(angle) + warp) * rng.uniform(110, 150)
        relief -= 0.5 * np.exp(-6 * np.sin(0.5 * phase) ** 2)
    lit = slope(relief)
    base = base * (1 + rng.uniform(0.03, 0.07) * lit + 0.02 * relief)[..., None]
    if rng.random() < 0.4:
        vessels = np.exp(-((noise(rng, size, 5, 3) / 0.035) ** 2)) * smoothstep(
            noise(rng, size, 3), 0, 0.6
        )
        base = blend(base, red * np.array([0.9, 0.62, 0.62], np.float32), 0.35 * vessels)
    freckles = smoothstep(noise(rng, size, 20, 3), rng.uniform(0.8, 1.1), 1.35)
    return blend(base, tone * np.array([0.74, 0.6, 0.5], np.float32), 0.45 * freckles)


def _mole(
    pixels: np.ndarray, rng: np.random.Generator, kind: int, centre: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Blend one mole into the skin; returns the picture and where the mole is, bool (S, S)."""
    severity = rng.normal(SEVERITY[kind], SPREAD)
    asymmetry, border, colours, extent = np.clip(severity + rng.normal(0, SPREAD, 4), 0, 1)

    radius = scale * (0.12 + 0.15 * extent)
    patch, x, y, around = _surroundings(pixels, centre, 2.1 * radius)
    size = len(patch)
    share_of_picture = size / len(pixels)

    def texture(cells: int, octaves: int = 1) -> np.ndarray:
        return noise(rng, size, max(2, round(cells * share_of_picture)), octaves)

    turn, long = rng.uniform(0, np.pi), rng.uniform(1.0, 1.35)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / np.sqrt(long)
    v = (-dx * np.sin(turn) + dy * np.cos(turn)) * np.sqrt(long)
    bearing = np.arctan2(v, u)
    table = np.linspace(-np.pi, np.pi, 721)
    wave = np.ones_like(table)
    for k in range(1, 4):
        wave += (
            (0.02 + 0.2 * asymmetry)
            / k
            * rng.normal(0, 0.8)
            * np.cos(k * table + rng.uniform(0, 6))
        )
    for k in range(4, 9):
        wave += (0.006 + 0.025 * border) * rng.normal() * np.cos(k * table + rng.uniform(0, 6))
    rim = np.interp(bearing, table, np.maximum(wave, 0.35)).astype(np.float32)
    depth = rim - np.hypot(u, v) / radius  # 0 on the border, 1 or so at the heart
    depth += (0.03 + 0.2 * border) * texture(10, 4)
    softness = rng.uniform(0.05, 0.22)
    cover = smoothstep(depth, -softness, softness)
    inside = depth > 0

    brown = vary(rng, pick(rng, *BROWNS), 0.025)
    dark = brown * np.array([0.5, 0.45, 0.45], np.float32)
    # Benign moles darken evenly towards the heart; malignant ones in patches.
    even = np.clip(depth, 0, 1) * rng.uniform(0.3, 0.8)
    patchy = 0.4 + 0.75 * texture(5, 5)
    depth_tone = np.clip(even + colours * (patchy - even), 0, 1)
    paint = blend(brown * 1.15, dark, depth_tone)
    extra = ("1c1412", "5a6472", "94463a", "cfb4a4", "b48a58")
    wanted = int(np.clip(round(colours * 4.2 - 0.9 + rng.normal(0, 0.4)), 0, 4))
    for code in rng.permutation(len(extra))[:wanted]:
        where = rng.normal(0, 0.4, 2) * radius
        near = np.exp(-(((dx - where[0]) ** 2 + (dy - where[1]) ** 2) / (0.55 * radius) ** 2))
        share = smoothstep(near + 0.3 * texture(9, 4), 0.3, 1.0)
        paint = blend(paint, hexa(extra[code]), rng.uniform(0.5, 0.85) * share)
    # The pigment network: a fine mesh, regular when benign, broken when not.
    mesh = np.exp(-((texture(48, 1) / 0.16) ** 2))
    mesh *= 1 - border * smoothstep(texture(4), -0.1, 0.3)
    grainy = 0.13 * texture(40, 2)
    paint = paint * (1.06 + grainy - rng.uniform(0.06, 0.22) * mesh)[..., None]
    # Part of the skin's own relief stays visible through the mole.
    tone = patch.mean(2)
    relief = tone / tone.mean()
    paint = paint * ((0.45 + 0.55 * relief) * (0.3 + 0.9 * tone.mean()))[..., None]

    halo = smoothstep(depth, -softness - 0.35, 0.0) * rng.uniform(0.05, 0.3)
    flushed = blend(patch, patch * np.array([0.93, 0.74, 0.7], np.float32), halo)
    merged = blend(flushed, paint, cover * rng.uniform(0.82, 0.97))
    picture = pixels.copy()
    owned = np.zeros(pixels.shape[:2], bool)
    into, out_of = around
    picture[into], owned[into] = merged[out_of], inside[out_of]
    return picture, owned


def _surroundings(
    pixels: np.ndarray, centre: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The square around `centre`: its pixels, coordinates, and where it meets the picture."""
    size = len(pixels)
    half = int(np.ceil(reach * size))
    low = np.floor(np.asarray(centre) * size).astype(int)[::-1] - half  # row, column
    rows, cols = (np.arange(2 * half) + v for v in low)
    patch = pixels[np.clip(rows, 0, size - 1)][:, np.clip(cols, 0, size - 1)]
    x, y = np.meshgrid(*(((v + 0.5) / size).astype(np.float32) for v in (cols, rows)))
    begin, end = np.maximum(low, 0), np.minimum(low + 2 * half, size)
    into = tuple(slice(b, e) for b, e in zip(begin, end, strict=True))
    out_of = tuple(slice(b - v, e - v) for b, e, v in zip(begin, end, low, strict=True))
    return patch, x, y, (into, out_of)


def _hairs(canvas: Canvas, rng: np.random.Generator) -> None:
    count = int(rng.integers(0, 5)) if rng.random() < 0.7 else int(rng.integers(6, 16))
    hue = pick(rng, "2a1a14", "1a1413", "5a3a22", "d9c09a")
    flow = rng.uniform(0, np.pi)
    for _ in range(count):
        start = rng.uniform(-0.1, 1.1, 2)
        angle = flow + rng.normal(0, 0.4)
        long = rng.uniform(0.15, 0.9)
        end = start + long * np.array([np.cos(angle), np.sin(angle)])
        bend = 0.5 * (start + end) + rng.normal(0, 0.12 * long, 2)
        line = curve([start, bend, end], 22)
        wide = rng.uniform(0.0022, 0.0042) * (1 - 0.85 * np.linspace(0, 1, 22) ** 2)
        canvas.soft(ribbon(line + [0.004, 0.008], 2 * wide), (0.25, 0.1, 0.08), 0.3, 0.005)
        canvas.polygon(ribbon(line, wide), vary(rng, hue, 0.02), "distractor")
        canvas.line(line[2:-4] - [0.0008, 0.0008], blend(hue, (1, 0.9, 0.8), 0.3), 0.0012)


def _ruler(canvas: Canvas, rng: np.random.Generator) -> None:
    """Millimetre marks printed along one edge."""
    low = rng.random() < 0.5
    base = rng.uniform(0.93, 0.97) if low else rng.uniform(0.03, 0.07)
    upright = rng.random() < 0.5
    step, shift = rng.uniform(0.026, 0.04), rng.uniform(0, 0.03)
    ink = vary(rng, hexa("20242c"), 0.03)
    way = -1 if low else 1
    for i in range(int(1 / step) + 2):
        at = shift + i * step
        long = 0.055 if i % 10 == 0 else 0.042 if i % 5 == 0 else 0.026
        mark = np.array([[at, base], [at, base + way * long]])
        canvas.line(mark[:, ::-1] if upright else mark, ink, 0.005, "distractor")


def _patch(canvas: Canvas, rng: np.random.Generator) -> None:
    """A round colour patch for calibration, partly out of the picture."""
    hue = vary(rng, pick(rng, "3f9ac9", "e7b73c", "5aa86a", "b8508a"), 0.03)
    corner = np.array([rng.choice([0.02, 0.98]), rng.uniform(0.1, 0.9)])
    if rng.random() < 0.5:
        corner = corner[::-1]
    disc(canvas, corner, float(rng.uniform(0.1, 0.17)), hue, "distractor")


def disc(
    canvas: Canvas, centre: np.ndarray, radius: float, hue: np.ndarray, part: str | None
) -> None:
    """A sticker with a printed ring."""
    canvas.soft(circle(centre + [0.008, 0.012], radius), (0.2, 0.08, 0.06), 0.5, 0.015)
    canvas.shaded(
        circle(centre, radius, 48), centre - 0.4 * radius, hue * 0.86, hue * 1.08, part, 5
    )
    canvas.line(circle(centre, 0.8 * radius, 49), hue * 0.7, 0.006)


def _ink(canvas: Canvas, rng: np.random.Generator) -> None:
    """Strokes of a surgeon's violet pen beside the mole."""
    hue = vary(rng, hexa("5a4a92"), 0.05)
    for _ in range(int(rng.integers(1, 4))):
        side = rng.choice([0.06, 0.94]) + rng.normal(0, 0.02)
        start = np.array([side, rng.uniform(0.1, 0.8)])
        if rng.random() < 0.5:
            start = start[::-1]
        end = start + rng.normal(0, 0.09, 2)
        line = curve([start, 0.5 * (start + end) + rng.normal(0, 0.02, 2), end], 14)
        wide = rng.uniform(0.006, 0.011)
        canvas.polygon(ribbon(line, wide), hue, "distractor")
        canvas.polygon(ribbon(line, 0.5 * wide), blend(hue, hexa("8a70b8"), 0.5))


def _bubbles(canvas: Canvas, rng: np.random.Generator) -> None:
    """Air in the immersion fluid: rings of light, too thin to hide what is under them."""
    for _ in range(int(rng.integers(2, 8))):
        at, r = rng.uniform(0.03, 0.97, 2), float(rng.uniform(0.008, 0.022))
        canvas.line(circle(at, r, 24), (0.95, 0.86, 0.82), 0.0022)
        canvas.dot(at - 0.4 * r, 0.22 * r, (1, 1, 1))
