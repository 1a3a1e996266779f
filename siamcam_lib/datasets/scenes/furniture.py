"""The furniture of the room scenes: a catalogue of pieces, each a few boxes and cylinders.

A piece takes wood and fabrics from its flat and is told which part it belongs to. Which pieces
decide a class is said in `rooms`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from siamcam_lib.datasets.scenes.canvas import blend, curve, generator, hexa, pick, ribbon, vary
from siamcam_lib.datasets.scenes.stage import TURN, Panel, Piece, Stage

WHITE = hexa("f6f3ec")
STEEL = hexa("aab2b8")
DARK = hexa("2e2f33")


@dataclass(frozen=True)
class Flat:
    """What the pictures of one flat have in common."""

    wall: np.ndarray
    floor: np.ndarray
    wood: np.ndarray
    accent: np.ndarray
    fabric: np.ndarray
    pattern: int
    paper: int

    @classmethod
    def of(cls, style: int) -> Flat:
        """The flat a seed stands for."""
        rng = generator(5, style)

        def one(*codes: str) -> np.ndarray:
            return vary(rng, pick(rng, *codes), 0.025)

        return cls(
            wall=one(
                "e9dfcf", "cfdcd6", "e6cfc4", "c9d3e0", "dcd6c0", "b9c7b4", "e8d8a8", "d8cfe0"
            ),
            floor=one("b98a5a", "8f6744", "c9a880", "a8a29a", "7a5a44", "d2c4ae"),
            wood=one("a8743f", "6f4a2e", "d0a878", "ece4d6", "8a5f3c"),
            accent=one("c8553d", "3f7a8c", "d9a441", "5a7d4a", "7a5a8c", "2f4f7a", "c97b8a"),
            fabric=one("8c99a6", "b5a58c", "5f7a78", "a8604a", "6a7f9c", "d6cbb8", "77685c"),
            pattern=int(rng.integers(3)),
            paper=int(rng.integers(4)),
        )


def _legs(p: Piece, w: float, d: float, top: float, colour: np.ndarray, t: float = 0.05) -> None:
    for x in (-w / 2, w / 2 - t):
        for z in (0.0, d - t):
            p.box((x, x + t), (0, top), (z, z + t), colour)


def bed(rng: np.random.Generator, flat: Flat, part: str, small: bool) -> list[Piece]:
    """A bed with headboard, pillows and blanket."""
    w, d = (rng.uniform(1.05, 1.35) if small else rng.uniform(1.3, 1.75)), rng.uniform(1.7, 2.0)
    p = Piece(part, w, d)
    cloth = vary(rng, blend(flat.fabric, flat.accent, rng.choice([0.0, 0.5, 1.0])), 0.04)
    sheet = vary(rng, hexa("f2efe8"), 0.02)
    head = flat.wood if rng.random() < 0.6 else cloth * 0.85
    tall = rng.uniform(0.75, 1.1)
    p.box((-w / 2, w / 2), (0, tall), (0, 0.08), head, 0.08)
    p.up()
    p.box((-w / 2, w / 2), (0.06, 0.3), (0.08, d), flat.wood)
    p.up()
    p.box((-w / 2 + 0.02, w / 2 - 0.02), (0.3, 0.48), (0.08, d), sheet, 0.08)
    p.up()
    n = 1 if w < 1.2 else 2
    for k in range(n):
        x0 = -w / 2 + 0.08 + k * (w - 0.08) / n
        p.box(
            (x0, x0 + (w - 0.24) / n), (0.46, 0.66), (0.1, 0.42), blend(sheet, cloth, 0.15 * k), 0.3
        )
    p.up()
    begin = rng.uniform(0.5, 0.8)
    fold = ("top", 0.0, 1.0, 0.0, 0.14, sheet, 0)
    stripes = []
    if rng.random() < 0.5:
        stripes = [("top", 0, 1, v, v + 0.06, cloth * 0.82, 0) for v in (0.35, 0.55, 0.75)]
    p.box(
        (-w / 2 - 0.03, w / 2 + 0.03),
        (0.22, 0.53),
        (begin, d + 0.03),
        cloth,
        0.04,
        [fold, *stripes],
    )
    return [p]


def sofa(rng: np.random.Generator, flat: Flat, part: str, small: bool) -> list[Piece]:
    """A sofa with cushions; its covers are those of the bed."""
    w, d = (rng.uniform(1.4, 1.6) if small else rng.uniform(1.6, 2.2)), rng.uniform(0.85, 1.05)
    p = Piece(part, w, d)
    cloth = vary(rng, blend(flat.fabric, flat.accent, rng.choice([0.0, 0.5, 1.0])), 0.04)
    arm = rng.uniform(0.14, 0.22)
    back = rng.uniform(0.78, 0.95)
    p.box((-w / 2 + 0.03, w / 2 - 0.03), (0.04, 0.3), (0.03, d - 0.03), cloth * 0.8)
    p.up()
    p.box((-w / 2, w / 2), (0.1, back), (0, 0.24), cloth * 0.93, 0.1)
    p.up()
    n = 2 if w < 1.9 else 3
    inner = w - 2 * arm
    for k in range(n):
        x0 = -w / 2 + arm + k * inner / n
        p.box((x0 + 0.01, x0 + inner / n - 0.01), (0.28, 0.48), (0.2, d), cloth * 1.04, 0.1)
    for x0 in (-w / 2, w / 2 - arm):
        p.box((x0, x0 + arm), (0.08, rng.uniform(0.58, 0.64)), (0, d), cloth, 0.14)
    p.up()
    for k in range(n):
        x0 = -w / 2 + arm + k * inner / n
        p.box(
            (x0 + 0.02, x0 + inner / n - 0.02), (0.46, back + 0.04), (0.2, 0.38), cloth * 1.0, 0.2
        )
    p.up()
    for _ in range(int(rng.integers(0, 4))):
        x0 = rng.uniform(-w / 2 + arm, w / 2 - arm - 0.4)
        hue = vary(rng, blend(flat.accent, WHITE, rng.choice([0.0, 0.6])), 0.06)
        p.box((x0, x0 + 0.38), (0.47, 0.82), (0.36, 0.48), hue, 0.25)
    if rng.random() < 0.3:  # a blanket over the seat, as on a bed
        x0 = rng.uniform(-w / 2 + arm, w / 2 - arm - 0.5)
        hue = vary(rng, flat.accent, 0.06)
        p.box((x0, x0 + 0.45), (0.25, 0.51), (0.4, d + 0.02), hue, 0.04)
    return [p]


def kitchen(rng: np.random.Generator, flat: Flat, part: str, small: bool) -> list[Piece]:
    """Counter with stove and sink, cupboards above, perhaps a refrigerator."""
    w, d = (1.55 if small else rng.uniform(1.6, 2.2)), 0.6
    p = Piece(part, w, d)
    door = vary(
        rng, (flat.wood, WHITE * 0.97, blend(flat.accent, WHITE, 0.35))[int(rng.integers(3))], 0.02
    )
    top = vary(rng, pick(rng, "4a4a4e", "d8d2c6", "8a6a4a"), 0.02)
    half = 0.3
    stove = rng.uniform(-w / 2 + half, w / 2 - half)
    panels: list[Panel] = []
    count = max(3, round(w / 0.45))
    for k in range(count):
        u0, u1 = k / count + 0.012, (k + 1) / count - 0.012
        panels.append(("front", u0, u1, 0.04, 0.94, door * 1.06, 0))
        panels.append(("front", u1 - 0.05, u1 - 0.02, 0.1, 0.22, STEEL, 0))
    p.box((-w / 2, w / 2), (0.06, 0.86), (0, d - 0.03), door * 0.9, 0, panels)
    p.up()
    tiles = vary(rng, blend(WHITE, flat.accent, 0.2), 0.02)
    lines: list[Panel] = [
        ("front", u, u + 0.008, 0, 1, tiles * 0.86, 0) for u in np.linspace(0.08, 0.92, 9)
    ]
    lines += [("front", 0, 1, v, v + 0.02, tiles * 0.86, 0) for v in (0.25, 0.5, 0.75)]
    p.box((-w / 2, w / 2), (0.9, 1.45), (0, 0.01), tiles, 0, lines)
    p.up()
    s0, s1 = (stove - half + w / 2) / w, (stove + half + w / 2) / w
    sink = (
        "top",
        (s1 + 0.06) if s1 < 0.6 else (s0 - 0.34),
        (s1 + 0.34) if s1 < 0.6 else (s0 - 0.06),
        0.25,
        0.8,
        STEEL,
        0.2,
    )
    hob: list[Panel] = [("top", s0, s1, 0.05, 0.97, DARK, 0)]
    for u in (0.28, 0.72):
        for v in (0.3, 0.72):
            hob.append(
                (
                    "top",
                    s0 + (u - 0.17) * (s1 - s0),
                    s0 + (u + 0.17) * (s1 - s0),
                    v - 0.16,
                    v + 0.16,
                    hexa("77787c"),
                    0.5,
                )
            )
    p.box((-w / 2, w / 2), (0.86, 0.91), (0, d), top, 0, [sink, *hob] if w > 1.3 else hob)
    oven = [
        ("front", 0.08, 0.92, 0.3, 0.88, DARK, 0.08),
        ("front", 0.16, 0.84, 0.4, 0.8, hexa("55504c"), 0.06),
        ("front", 0.12, 0.88, 0.22, 0.26, WHITE, 0),
    ] + [("front", u, u + 0.07, 0.06, 0.15, DARK, 0.5) for u in (0.14, 0.34, 0.54, 0.74)]
    p.box((stove - half, stove + half), (0.04, 0.87), (d - 0.05, d), STEEL * 1.08, 0, oven)
    p.up()
    high = rng.uniform(2.0, 2.2)
    row = [
        ("front", k / 4 + 0.015, (k + 1) / 4 - 0.015, 0.05, 0.95, door * 1.06, 0) for k in range(4)
    ]
    if rng.random() < 0.8:
        left = stove > 0
        x = (-w / 2, stove - half) if left else (stove + half, w / 2)
        if x[1] - x[0] > 0.4:
            p.box(x, (1.45, high), (0, 0.34), door * 0.9, 0, row)
        p.box((stove - half, stove + half), (1.55, 1.68), (0, 0.42), STEEL, 0)
        p.box((stove - 0.12, stove + 0.12), (1.68, high), (0, 0.25), STEEL * 0.95, 0)
    if rng.random() < 0.7:
        p.drum(stove - 0.12, 0.4, (0.92, 1.08), (0.1, 0.1), vary(rng, flat.accent, 0.05), DARK)
    pieces = [p]
    if not small and rng.random() < 0.55:
        f = Piece(part, 0.64, 0.64)
        body = vary(
            rng,
            (WHITE * 0.98, STEEL * 1.1, blend(flat.accent, WHITE, 0.2))[int(rng.integers(3))],
            0.02,
        )
        lines = [
            ("front", 0, 1, 0.36, 0.372, body * 0.7, 0),
            ("front", 0.06, 0.1, 0.12, 0.32, STEEL * 0.8, 0),
            ("front", 0.06, 0.1, 0.42, 0.66, STEEL * 0.8, 0),
        ]
        f.box((-0.32, 0.32), (0.03, rng.uniform(1.55, 1.85)), (0, 0.64), body, 0.0, lines)
        pieces.append(f)
    return pieces


def bath(rng: np.random.Generator, flat: Flat, part: str, small: bool) -> list[Piece]:
    """A bath; beside it a basin with mirror, or a toilet."""
    w, d = (1.45 if small else rng.uniform(1.5, 1.75)), 0.75
    white = vary(rng, hexa("f7f7f5"), 0.012)
    p = Piece(part, w, d)
    skirt = white if rng.random() < 0.6 else vary(rng, blend(flat.accent, WHITE, 0.4), 0.03)
    water = vary(rng, hexa("a9d5de"), 0.03)
    inner = [
        ("top", 0.05, 0.95, 0.1, 0.9, white * 0.8, 0.35),
        ("top", 0.08, 0.92, 0.17, 0.87, water if rng.random() < 0.7 else white * 0.93, 0.35),
    ]
    p.box(
        (-w / 2, w / 2),
        (0.0, 0.52),
        (0.02, d - 0.02),
        skirt * 0.97,
        0,
        [("front", 0.05, 0.95, 0.2, 0.9, skirt * 1.02, 0.1)],
    )
    p.up()
    p.box((-w / 2 - 0.02, w / 2 + 0.02), (0.52, 0.58), (0, d), white, 0, inner)
    p.up()
    p.drum(-w / 2 + 0.18, 0.12, (0.58, 0.76), (0.025, 0.025), STEEL)
    p.box((-w / 2 + 0.16, -w / 2 + 0.2), (0.74, 0.77), (0.1, 0.3), STEEL)
    if rng.random() < 0.5:
        x0 = rng.uniform(-0.1, w / 2 - 0.5)
        towel = vary(rng, flat.accent, 0.05)
        p.box(
            (x0, x0 + 0.4),
            (0.25, 0.6),
            (d - 0.03, d + 0.02),
            towel,
            0.06,
            [("front", 0, 1, 0.75, 0.82, WHITE, 0)],
        )
    pieces = [p]
    if small:
        return pieces
    if rng.random() < 0.6:
        b = Piece(part, 0.6, 0.48)
        b.drum(0, 0.2, (0, 0.72), (0.1, 0.08), white * 0.97)
        b.up()
        b.box(
            (-0.3, 0.3),
            (0.72, 0.86),
            (0.02, 0.48),
            white,
            0.12,
            [("top", 0.12, 0.88, 0.2, 0.85, white * 0.82, 0.45)],
        )
        b.up()
        b.drum(0, 0.06, (0.86, 1.0), (0.02, 0.02), STEEL)
        glass = hexa("cfe0e6")
        b.box(
            (-0.26, 0.26),
            (1.2, 1.85),
            (0, 0.03),
            flat.wood,
            0,
            [
                ("front", 0.07, 0.93, 0.06, 0.94, glass, 0),
                ("front", 0.2, 0.5, 0.1, 0.6, glass * 1.1, 0.2),
            ],
        )
        pieces.append(b)
    if rng.random() < 0.55:
        t = Piece(part, 0.42, 0.66)
        t.box(
            (-0.2, 0.2),
            (0.38, 0.8),
            (0, 0.18),
            white,
            0.06,
            [("top", 0.4, 0.6, 0.3, 0.7, STEEL, 0.4)],
        )
        t.up()
        t.drum(0, 0.42, (0, 0.36), (0.13, 0.18), white * 0.98)
        t.up()
        t.drum(0, 0.42, (0.36, 0.42), (0.21, 0.21), white, white)
        t.up()
        t.drum(0, 0.42, (0.42, 0.425), (0.13, 0.13), white * 0.8, water * 0.9)
        pieces.append(t)
    return pieces


def _chair(part: str, wood: np.ndarray, seat: np.ndarray) -> Piece:
    c = Piece(part, 0.42, 0.42)
    _legs(c, 0.4, 0.4, 0.43, wood * 0.85, 0.045)
    c.up()
    c.box((-0.21, 0.21), (0.43, 0.49), (0, 0.42), seat, 0.1)
    for x in (-0.2, 0.155):
        c.box((x, x + 0.045), (0.45, 0.92), (0, 0.045), wood)
    for y in (0.6, 0.78):
        c.box((-0.19, 0.19), (y, y + 0.11), (0.005, 0.035), wood * 1.04)
    return c


def dining(rng: np.random.Generator, flat: Flat, part: str, small: bool) -> list[Piece]:
    """Chairs round a table; the chairs decide, for a table stands in many rooms."""
    w, d = (0.8 if small else rng.uniform(1.2, 1.6)), (0.7 if small else rng.uniform(0.75, 0.9))
    out = rng.uniform(0.55, 0.95)
    t = table_piece(rng, flat, w, d, 0.74, laid=True)
    t.out = out
    wood = vary(rng, flat.wood if rng.random() < 0.6 else DARK * 1.3, 0.03)
    seat = vary(rng, flat.accent if rng.random() < 0.6 else wood * 1.1, 0.04)
    pieces = [t]
    xs = [0.0] if w < 0.9 else [-w / 4, w / 4]
    for x in xs:
        far = _chair(part, wood, seat)
        far.at, far.out = x, out - 0.34
        pieces.append(far)
        if len(xs) == 1 or rng.random() < 0.85:
            close = _chair(part, wood, seat)
            close.at, close.out, close.side = x, out + d - 0.1, "turned"
            pieces.append(close)
    for way in (-1, 1):
        if small or rng.random() < 0.5:
            end = _chair(part, wood, seat)
            end.at, end.out = way * (w / 2 + 0.2), out + 0.5 * d - 0.25
            end.side = "turned" if rng.random() < 0.5 else "back"
            pieces.append(end)
    return pieces


def entrance(rng: np.random.Generator, flat: Flat, part: str, small: bool) -> list[Piece]:
    """Coat rack, bench with shoes, and, where there is space, the door of the flat."""
    w = rng.uniform(0.95, 1.2)
    p = Piece(part, w, 0.36)
    p.box((-w / 2, w / 2), (0.4, 0.45), (0, 0.36), flat.wood * 1.05)
    for x in (-w / 2, w / 2 - 0.05):
        p.box((x, x + 0.05), (0, 0.4), (0, 0.34), flat.wood * 0.9)
    p.up()
    for k in range(int(rng.integers(2, 4))):
        hue = vary(
            rng, (DARK * 1.4, hexa("8a4a2e"), flat.accent, WHITE * 0.95)[int(rng.integers(4))], 0.04
        )
        x0 = -w / 2 + 0.1 + k * 0.3
        for off in (0, 0.11):
            p.box((x0 + off, x0 + off + 0.09), (0, 0.09), (0.08, 0.34), hue, 0.2)
    p.box((-w / 2, w / 2), (1.62, 1.74), (0, 0.03), flat.wood * 1.05)
    p.up()
    for k in range(int(rng.integers(2, 5))):
        x = -w / 2 + 0.16 + k * (w - 0.3) / 3.2
        hue = vary(
            rng,
            (flat.accent, flat.fabric, DARK * 1.5, hexa("b08a4a"), hexa("4a6a8a"))[
                int(rng.integers(5))
            ],
            0.05,
        )
        low = rng.uniform(0.7, 1.05)
        p.free((x, 1.2, 0.1), _coat(x, low, hue))
    pieces = [p]
    if not small or rng.random() < 0.5:
        door = Piece(part, 0.85, 0.06, shadow=False)
        hue = vary(rng, (flat.wood, WHITE, flat.accent * 0.8)[int(rng.integers(3))], 0.03)
        inset: list[Panel] = [
            ("front", u, u + 0.34, v, v + t, hue * 0.86, 0)
            for u in (0.12, 0.54)
            for v, t in ((0.06, 0.36), (0.5, 0.42))
        ]
        inset += [("front", 0.88, 0.95, 0.48, 0.52, STEEL, 0.4)]
        door.box((-0.46, 0.46), (0, 2.08), (0, 0.03), WHITE * 0.95)
        door.up()
        door.box((-0.4, 0.4), (0.01, 2.02), (0.02, 0.05), hue, 0, inset)
        pieces.append(door)
    return pieces


def _coat(x: float, low: float, hue: np.ndarray) -> Callable[[Stage, Piece], None]:
    def show(s: Stage, p: Piece) -> None:
        half = np.array([(0.02, 1.68), (0.1, 1.58), (0.17, 1.2), (0.15, low), (0.0, low - 0.02)])
        right = [(x + a, y, 0.12) for a, y in half]
        left = [(x - a, y, 0.12) for a, y in half[::-1]]
        shape = s.outline(p, right + left)
        s.canvas.polygon(shape, hue * 0.8, p.part)
        s.canvas.shaded(
            shape.mean(0) + 0.93 * (shape - shape.mean(0)), shape[0], hue * 0.95, hue * 1.1, None, 3
        )
        s.canvas.line(s.outline(p, [(x, 1.6, 0.13), (x, low, 0.13)]), hue * 0.65, 0.003)

    return show


def study(rng: np.random.Generator, flat: Flat, part: str, small: bool) -> list[Piece]:
    """A desk with a screen, papers and an office chair."""
    w, d = (1.15 if small else rng.uniform(1.2, 1.5)), 0.65
    p = Piece(part, w, d)
    wood = vary(rng, flat.wood, 0.03)
    _legs(p, w, d, 0.71, wood * 0.8)
    right = rng.random() < 0.5
    x0 = w / 2 - 0.4 if right else -w / 2
    drawers = [("front", 0.06, 0.94, v, v + 0.28, wood * 1.08, 0) for v in (0.04, 0.36, 0.68)]
    drawers += [("front", 0.4, 0.6, v, v + 0.05, STEEL, 0) for v in (0.14, 0.46, 0.78)]
    p.box((x0, x0 + 0.4), (0.08, 0.71), (0.02, d - 0.02), wood * 0.9, 0, drawers)
    p.up()
    p.box((-w / 2 - 0.02, w / 2 + 0.02), (0.71, 0.76), (0, d), wood)
    p.up()
    at = rng.uniform(-0.2, 0.2)
    glow = vary(rng, pick(rng, "5a8fc0", "3a4a5c", "7ab0a0"), 0.03)
    p.drum(at, 0.2, (0.76, 0.78), (0.12, 0.12), DARK * 1.3)
    p.box((at - 0.025, at + 0.025), (0.78, 0.92), (0.17, 0.2), DARK * 1.2)
    screen = [
        ("front", 0.03, 0.97, 0.05, 0.93, glow, 0),
        ("front", 0.1, 0.6, 0.18, 0.26, glow * 0.5 + 0.5, 0),
        ("front", 0.1, 0.8, 0.36, 0.42, glow * 0.7 + 0.3, 0),
        ("front", 0.1, 0.7, 0.52, 0.58, glow * 0.7 + 0.3, 0),
    ]
    p.up()
    p.box((at - 0.33, at + 0.33), (0.9, 1.3), (0.18, 0.22), DARK, 0, screen)
    p.up()
    p.box((at - 0.22, at + 0.22), (0.76, 0.775), (0.38, 0.52), hexa("d6d6d4"), 0)
    for k in range(int(rng.integers(1, 4))):
        hue = vary(rng, (flat.accent, flat.fabric, hexa("b5493a"))[k % 3], 0.05)
        xb = -w / 2 + 0.05 if right else w / 2 - 0.3
        p.box((xb, xb + 0.25), (0.76 + 0.045 * k, 0.8 + 0.045 * k), (0.12, 0.36), hue)
        p.up()
    pieces = [p]
    chair = Piece(part, 0.5, 0.5)
    cloth = vary(rng, DARK * 1.2 if rng.random() < 0.5 else flat.accent, 0.03)
    for a in np.arange(5) * 2 * np.pi / 5:
        chair.drum(0.24 * np.cos(a), 0.25 + 0.24 * np.sin(a), (0, 0.06), (0.035, 0.035), DARK)
    chair.up()
    chair.drum(0, 0.25, (0.05, 0.42), (0.03, 0.03), STEEL * 0.8)
    chair.up()
    chair.box((-0.23, 0.23), (0.42, 0.5), (0.02, 0.48), cloth, 0.2)
    chair.up()
    chair.box((-0.2, 0.2), (0.55, 1.0), (0, 0.07), cloth * 1.05, 0.2)
    chair.at, chair.out, chair.side = rng.uniform(-0.3, 0.3), d + 0.05, "turned"
    pieces.append(chair)
    return pieces


def table_piece(
    rng: np.random.Generator, flat: Flat, w: float, d: float, top: float, laid: bool
) -> Piece:
    """A table, round or square: it stands in rooms of several classes."""
    p = Piece("common", w, d)
    wood = vary(rng, flat.wood, 0.04)
    if rng.random() < 0.3 and not laid:
        r = 0.5 * min(w, d) + 0.08
        p.drum(0, d / 2, (0, 0.03), (0.2, 0.2), wood * 0.8)
        p.up()
        p.drum(0, d / 2, (0.03, top - 0.04), (0.04, 0.04), wood * 0.8)
        p.up()
        p.drum(0, d / 2, (top - 0.04, top), (r, r), wood, wood * 1.08)
    else:
        _legs(p, w, d, top - 0.05, wood * 0.85, 0.06)
        p.up()
        p.box((-w / 2, w / 2), (top - 0.06, top), (0, d), wood)
    p.up()
    kind = int(rng.integers(3))
    if laid:
        for x in (-w / 4, w / 4) if w > 0.9 else (0.0,):
            for z in (0.22 * d, 0.78 * d):
                p.drum(x, z, (top, top + 0.01), (0.11, 0.11), WHITE, WHITE * 0.99)
        p.up()
        p.drum(0, d / 2, (top, top + 0.15), (0.05, 0.07), vary(rng, flat.accent, 0.06), DARK)
    elif kind == 0:
        p.drum(
            0.1 * w,
            d / 2,
            (top, top + 0.09),
            (0.06, 0.1),
            vary(rng, flat.accent, 0.06),
            vary(rng, hexa("d8933a"), 0.06),
        )
    elif kind == 1:
        p.drum(-0.1 * w, d / 2, (top, top + 0.2), (0.04, 0.03), hexa("8fb0b8"))
        p.up()
        p.free(
            (-0.1 * w, top + 0.3, d / 2),
            _sprig(-0.1 * w, top + 0.18, d / 2, 0.16, int(rng.integers(1 << 30))),
        )
    return p


def _sprig(x: float, y: float, z: float, tall: float, key: int) -> Callable[[Stage, Piece], None]:
    """Leaves that rise from a point."""

    def show(s: Stage, p: Piece) -> None:
        rng = generator(6, key)
        root = np.array(s.camera(p.place((x, y, z))))
        high = np.array(s.camera(p.place((x, y + tall, z))))
        reach = float(np.hypot(*(high - root)))
        green = vary(rng, pick(rng, "4f8a4a", "2f6a4c", "7a9a4a"), 0.03)
        narrow = rng.uniform(0.08, 0.2)
        for angle in np.sort(rng.uniform(-1.25, 1.25, int(rng.integers(7, 12))))[::-1]:
            far = reach * rng.uniform(0.75, 1.15)
            tip = root + far * np.array([np.sin(angle), -np.cos(angle)])
            bend = root + 0.6 * far * np.array([0.5 * np.sin(angle), -1.0])
            spine = curve([root, bend, tip], 9)
            wide = far * narrow * np.sin(np.pi * np.linspace(0.02, 1, 9) ** 0.7) + 1e-4
            tone = green * rng.uniform(0.8, 1.15)
            s.canvas.polygon(ribbon(spine, wide), tone * 0.85, p.part)
            s.canvas.polygon(ribbon(spine - [0.0015, 0.001], 0.55 * wide), tone * 1.1)

    return show


def table(rng: np.random.Generator, flat: Flat) -> Piece:
    """The common table, somewhere in the front of the room."""
    low = rng.random() < 0.55
    w, d = rng.uniform(0.55, 1.0), rng.uniform(0.45, 0.6)
    p = table_piece(rng, flat, w, d, 0.42 if low else 0.68, laid=False)
    p.at = float(rng.uniform(-1.4, 1.4))
    p.out = float(rng.uniform(1.9, 2.5))
    return p


def plant(rng: np.random.Generator, flat: Flat) -> Piece:
    """A plant in a pot."""
    p = Piece("distractor", 0.4, 0.4)
    pot = vary(rng, (hexa("b86a48"), WHITE, flat.accent, DARK * 1.6)[int(rng.integers(4))], 0.04)
    high = rng.uniform(0.25, 0.4)
    p.drum(0, 0.2, (0, high), (0.12, 0.17), pot, hexa("4a3628"))
    p.up()
    p.free(
        (0, 0.6, 0.2),
        _sprig(0, high - 0.02, 0.2, rng.uniform(0.5, 0.9), int(rng.integers(1 << 30))),
    )
    return p


def lamp(rng: np.random.Generator, flat: Flat) -> Piece:
    """A floor lamp."""
    p = Piece("distractor", 0.4, 0.4)
    metal = DARK if rng.random() < 0.6 else hexa("c9a24a")
    high = rng.uniform(1.35, 1.6)
    p.drum(0, 0.2, (0, 0.03), (0.14, 0.14), metal)
    p.up()
    p.drum(0, 0.2, (0.03, high), (0.015, 0.015), metal)
    p.up()

    def glow(s: Stage, q: Piece) -> None:
        ring = s.outline(q, [(0.5 * np.cos(a), high + 0.1 + 0.5 * np.sin(a), 0.2) for a in TURN])
        s.canvas.soft(ring, hexa("fff0c0"), 0.3, 0.04)

    p.free((0, high, 0.2), glow)
    p.up()
    shade = vary(rng, blend(flat.accent, hexa("fff0d0"), rng.choice([0.35, 0.9])), 0.03)
    p.drum(0, 0.2, (high - 0.05, high + 0.25), (0.2, 0.13), shade * 1.05, shade * 0.8)
    return p


def shelf(rng: np.random.Generator, flat: Flat) -> Piece:
    """A shelf with books."""
    w, high = rng.uniform(0.55, 0.8), rng.uniform(0.9, 1.7)
    p = Piece("distractor", w, 0.3)
    wood = vary(rng, flat.wood, 0.03)
    n = max(2, round(high / 0.4))
    panels: list[Panel] = []
    for k in range(n):
        v0, v1 = k / n + 0.025, (k + 1) / n - 0.015
        panels.append(("front", 0.05, 0.95, v0, v1, wood * 0.55, 0))
        u = 0.07
        while u < 0.86:
            thick = rng.uniform(0.05, 0.1)
            hue = vary(
                rng,
                (flat.accent, flat.fabric, hexa("b5493a"), hexa("d8c48a"), hexa("3f5f6f"))[
                    int(rng.integers(5))
                ],
                0.06,
            )
            top = v0 + (v1 - v0) * rng.uniform(0.1, 0.4)
            panels.append(("front", u, min(u + thick, 0.93), top, v1, hue, 0))
            u += thick + (0.01 if rng.random() < 0.8 else 0.15)
    p.box((-w / 2, w / 2), (0, high), (0, 0.3), wood, 0, panels)
    return p


def crate(rng: np.random.Generator, flat: Flat) -> Piece:
    """A pouffe, a basket or a chest."""
    p = Piece("distractor", 0.45, 0.45)
    hue = vary(rng, blend(flat.accent, flat.fabric, rng.uniform(0, 1)), 0.06)
    if rng.random() < 0.5:
        p.drum(0, 0.22, (0, 0.38), (0.22, 0.22), hue)
    else:
        p.box(
            (-0.22, 0.22),
            (0, 0.36),
            (0, 0.42),
            flat.wood,
            0.0,
            [("front", 0.05, 0.95, v, v + 0.26, flat.wood * 1.1, 0) for v in (0.05, 0.37, 0.69)],
        )
    return p


Maker = Callable[[np.random.Generator, Flat, str, bool], list[Piece]]
MAKERS: tuple[Maker, ...] = (bath, bed, dining, entrance, kitchen, sofa, study)
ODDMENTS = (plant, lamp, shelf, crate)
