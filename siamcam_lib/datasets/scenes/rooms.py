"""Rooms: which furniture is there decides the class; wall, floor and odds and ends do not.

Mirrors the AirBnB photographs: long-tailed classes, several pictures of one flat, a table that
most rooms have, and a bed and a sofa that look alike. All classes stand in the same kind of
bare room, so that only the furniture can tell them apart. Drawn in one-point perspective from
boxes and cylinders, the farthest first.
"""

from __future__ import annotations

import numpy as np

from siamcam_lib.datasets.scenes.canvas import (
    Canvas,
    blend,
    developed,
    generator,
    grid,
    hexa,
    noise,
    ribbon,
    vary,
)
from siamcam_lib.datasets.scenes.furniture import (
    DARK,
    MAKERS,
    ODDMENTS,
    WHITE,
    Flat,
    table,
)
from siamcam_lib.datasets.scenes.stage import (
    DEPTH,
    HALF,
    HEIGHT,
    TURN,
    Camera,
    Piece,
    Point,
    Stage,
)

CLASSES = ("Bathroom", "Bedroom", "Dining-room", "Entrance", "Kitchen", "Living-room", "Study")
SHARES = (0.10, 0.33, 0.08, 0.04, 0.16, 0.24, 0.05)
COUNT = 360
PARTS = ("deciding", "second", "common", "distractor", "shortcut", "shared")
TABLE_CHANCE = (0.1, 0.45, 0.0, 0.2, 0.5, 0.65, 0.3)
"""How often the common table stands in a room of each class (a dining room has its own)."""


def draw(
    label: int, second: int | None, seed: int, style: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one room.

    Args:
        label: Class whose furniture is there.
        second: Another class whose furniture is there as well, or None.
        seed: Seed of the furniture and of the camera.
        style: Seed of the flat: wall, floor, wood, fabrics.
        size: Side S in pixels.

    Returns:
        The picture, uint8 (S, S, 3), and the number of the part at each pixel, uint8 (S, S).
    """
    rng = generator(7, seed, label)
    flat = Flat.of(style)
    pieces, taken = _furnish(rng, flat, label, second)
    camera = Camera(rng, {"left": -1, "right": 1}.get(pieces[0].side, 0))
    canvas = Canvas(_shell(camera, flat, rng, size), PARTS)
    stage = Stage(canvas, camera)
    gaps = _gaps(taken)
    if rng.random() < 0.5:
        _window(stage, flat, rng, float(rng.uniform(-1.2, 1.2)))
    elif rng.random() < 0.7:
        _picture(stage, flat, rng, float(rng.uniform(-1.4, 1.4)), "back")
    if rng.random() < 0.5:
        _picture(
            stage,
            flat,
            rng,
            float(rng.uniform(0.6, 2.4)),
            "left" if rng.random() < 0.5 else "right",
        )
    if rng.random() < 0.4:
        _rug(stage, flat, rng)
    for low, high in gaps:
        if rng.random() < 0.6:
            thing = ODDMENTS[int(rng.integers(len(ODDMENTS)))](rng, flat)
            if thing.wide < high - low:
                thing.at = float(rng.uniform(low + thing.wide / 2, high - thing.wide / 2))
                pieces.append(thing)
    chance = TABLE_CHANCE[label] if second is None else 0.0
    if rng.random() < chance:
        pieces.append(table(rng, flat))
    elif rng.random() < 0.3:
        thing = ODDMENTS[int(rng.choice([0, 3]))](rng, flat)
        thing.at, thing.out = (
            float(rng.choice([-1, 1]) * rng.uniform(1.2, 1.7)),
            float(rng.uniform(1.6, 2.4)),
        )
        pieces.append(thing)

    for piece in pieces:
        if piece.shadow:
            stage.ground_shadow(piece)
    for piece in sorted(pieces, key=lambda q: -_ground_distance(camera, q)):
        stage.show(piece)
    owners, pixels = canvas.owners(), canvas.pixels()
    return developed(pixels, rng, grain=float(rng.uniform(0.005, 0.018)), corners=0.18), owners


def _ground_distance(camera: Camera, piece: Piece) -> float:
    x, _, z = piece.middle()
    return (z - camera.z) + 0.15 * abs(x - camera.x)


def _furnish(
    rng: np.random.Generator, flat: Flat, label: int, second: int | None
) -> tuple[list[Piece], list[tuple[float, float]]]:
    """Place what decides; returns the pieces and the stretches of the back wall they take."""
    if second is None:
        pieces = MAKERS[label](rng, flat, "deciding", False)
        if label not in (2, 3) and rng.random() < 0.2:
            return _along_side(rng, pieces), []
        return _along_back(rng, pieces, -HALF + 0.2, HALF - 0.2)
    side = 1 if rng.random() < 0.5 else -1
    out: list[Piece] = []
    taken: list[tuple[float, float]] = []
    for kind, part, way in ((label, "deciding", -side), (second, "second", side)):
        low, high = (0.1 - HALF, -0.05) if way < 0 else (0.05, HALF - 0.1)
        placed, used = _along_back(rng, MAKERS[kind](rng, flat, part, True), low, high)
        out += placed
        taken += used
    return out, taken


def _clusters(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces that keep their places relative to the first of them (`at` not 0 or `out` not 0)."""
    out: list[list[Piece]] = []
    for piece in pieces:
        if out and (piece.at or piece.out):
            out[-1].append(piece)
        else:
            out.append([piece])
    return out


def _extent(cluster: list[Piece]) -> tuple[float, float]:
    return (
        min(p.at - p.wide / 2 for p in cluster),
        max(p.at + p.wide / 2 for p in cluster),
    )


def _along_back(
    rng: np.random.Generator, pieces: list[Piece], low: float, high: float
) -> tuple[list[Piece], list[tuple[float, float]]]:
    clusters = _clusters(pieces)
    rng.shuffle(clusters)
    while len(clusters) > 1 and sum(np.ptp(_extent(c)) + 0.08 for c in clusters) > high - low:
        smallest = min(clusters, key=lambda c: np.ptp(_extent(c)))
        clusters.remove(smallest)
    room = high - low - sum(np.ptp(_extent(c)) for c in clusters)
    cuts = np.sort(rng.uniform(0, max(room, 0.0), len(clusters)))
    at, taken = low, []
    for k, cluster in enumerate(clusters):
        at += cuts[k] - (cuts[k - 1] if k else 0.0)
        begin, end = _extent(cluster)
        for piece in cluster:
            piece.at += at - begin
        taken.append((at, at + end - begin))
        at += end - begin
    return [p for c in clusters for p in c], taken


def _along_side(rng: np.random.Generator, pieces: list[Piece]) -> list[Piece]:
    """Against a side wall; what turned its back to the viewer stays out."""
    side = "left" if rng.random() < 0.5 else "right"
    first = pieces[0]
    first.side = side
    # Far enough back to be seen whole: at is measured from the viewer's end of the wall.
    first.at = DEPTH - first.wide / 2 - float(rng.uniform(0.05, 0.35))
    return [first]


def _gaps(taken: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches of the back wall that are still free."""
    edges = [-HALF, *(v for pair in sorted(taken) for v in pair), HALF]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 0.42]


# --- the bare room -----------------------------------------------------------------------------


def _shell(camera: Camera, flat: Flat, rng: np.random.Generator, size: int) -> np.ndarray:
    """Floor, walls and ceiling, lit from one side; float32 (S, S, 3)."""
    canvas = Canvas(np.ones((size, size, 3), np.float32), PARTS)
    near = camera.z + 0.5

    def face(*points: Point) -> np.ndarray:
        return np.array([camera(p) for p in points])

    h, w, d = HEIGHT, HALF, DEPTH
    canvas.polygon(face((-w, h, near), (w, h, near), (w, h, d), (-w, h, d)), WHITE * 0.97)
    canvas.polygon(face((-w, 0, near), (-w, h, near), (-w, h, d), (-w, 0, d)), flat.wall * 0.93)
    canvas.polygon(face((w, 0, near), (w, h, near), (w, h, d), (w, 0, d)), flat.wall * 0.84)
    canvas.polygon(face((-w, 0, d), (w, 0, d), (w, h, d), (-w, h, d)), flat.wall)
    if flat.paper == 1:
        for i in range(0, 14, 2):
            x0, x1 = -w + i * 0.3, -w + (i + 1) * 0.3
            canvas.polygon(face((x0, 0, d), (x1, 0, d), (x1, h, d), (x0, h, d)), flat.wall * 0.965)
            z0, z1 = d - i * 0.3, d - (i + 1) * 0.3
            for x, tone in ((-w, 0.9), (w, 0.81)):
                canvas.polygon(
                    face((x, 0, z0), (x, 0, z1), (x, h, z1), (x, h, z0)), flat.wall * tone
                )
    elif flat.paper == 2:
        low = blend(flat.wall, WHITE, 0.6)
        for x, tone in ((-w, 0.93), (w, 0.85)):
            canvas.polygon(face((x, 0, near), (x, 0.95, near), (x, 0.95, d), (x, 0, d)), low * tone)
        canvas.polygon(face((-w, 0, d), (w, 0, d), (w, 0.95, d), (-w, 0.95, d)), low)
        canvas.line(
            face((-w, 0.95, near), (-w, 0.95, d), (w, 0.95, d), (w, 0.95, near)), WHITE, 0.007
        )

    canvas.polygon(face((-w, 0, near), (w, 0, near), (w, 0, d), (-w, 0, d)), flat.floor, "common")
    if flat.pattern == 0:  # planks
        for i in range(18):
            x0, x1 = -w + i * 2 * w / 18, -w + (i + 1) * 2 * w / 18
            z = d
            while z > near:
                z1 = max(near, z - rng.uniform(0.7, 1.9))
                tone = rng.uniform(0.9, 1.08)
                canvas.polygon(
                    face((x0, 0, z), (x1, 0, z), (x1, 0, z1), (x0, 0, z1)), flat.floor * tone
                )
                z = z1
            canvas.line(face((x1, 0, near), (x1, 0, d)), flat.floor * 0.8, 0.0016)
    elif flat.pattern == 1:  # tiles
        step = 2 * w / 9
        for i in range(9):
            for j in range(14):
                tone = 1.04 if (i + j) % 2 else 0.9
                x0, z0 = -w + i * step, d - j * step
                if z0 - step < near:
                    continue
                tile = face(
                    (x0, 0, z0), (x0 + step, 0, z0), (x0 + step, 0, z0 - step), (x0, 0, z0 - step)
                )
                canvas.polygon(tile, flat.floor * tone)
    skirting = np.array([[-w, near], [-w, d], [w, d], [w, near]])
    for high, tone in ((0.1, 1.0), (0.05, 0.9)):
        canvas.line(face(*[(x, high, z) for x, z in skirting]), WHITE * tone, 0.010)
    corner = (0.16, 0.12, 0.1)
    for a, b in (
        ((-w, 0, d), (-w, h, d)),
        ((w, 0, d), (w, h, d)),
        ((-w, h, d), (w, h, d)),
        ((-w, 0, d), (w, 0, d)),
    ):
        canvas.soft(ribbon(face(a, b), 0.02), corner, 0.22, 0.03)

    across, down = grid(size)
    side = 1 if rng.random() < 0.5 else -1
    light = 1.04 + 0.1 * side * (across - 0.5) - 0.1 * (down - 0.4)
    light = light + 0.012 * noise(rng, size, 4, 2)
    if flat.pattern == 2:  # carpet
        pile = 0.05 * noise(rng, size, 80, 1)
        light += pile * (canvas.owners() > 0)
    return canvas.pixels() * light[..., None]


def _window(stage: Stage, flat: Flat, rng: np.random.Generator, at: float) -> None:
    """A window on the back wall, with curtains, and its light on the floor."""
    piece = Piece("distractor", 1.1, 0.05, at=at)
    sky = blend(hexa("9cc9ec"), hexa("f3f7fa"), rng.uniform(0, 0.7))
    low, high, half = rng.uniform(0.95, 1.1), rng.uniform(2.05, 2.2), rng.uniform(0.42, 0.62)

    def show(s: Stage, p: Piece) -> None:
        def quad(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
            return s.outline(p, [(x0, y1, 0.02), (x1, y1, 0.02), (x1, y0, 0.02), (x0, y0, 0.02)])

        s.canvas.polygon(
            quad(-half - 0.07, half + 0.07, low - 0.07, high + 0.07), WHITE, "distractor"
        )
        pane = quad(-half, half, low, high)
        s.canvas.shaded(pane, pane[2:].mean(0), sky, sky * 0.5 + 0.5, None, 4)
        hill = low + (high - low) * rng.uniform(0.2, 0.4)
        green = vary(rng, hexa("8fae7a"), 0.04)
        ridge = [
            (x, hill + 0.06 * np.sin(5 * x + 9 * at), 0.02) for x in np.linspace(-half, half, 9)
        ]
        s.canvas.polygon(s.outline(p, [*ridge, (half, low, 0.02), (-half, low, 0.02)]), green)
        for bar in (
            quad(-0.02, 0.02, low, high),
            quad(-half, half, 0.55 * low + 0.45 * high - 0.02, 0.55 * low + 0.45 * high + 0.02),
        ):
            s.canvas.polygon(bar, WHITE * 0.97)
        cloth = blend(flat.accent, WHITE, 0.35)
        for way in (-1, 1):
            for k in range(4):
                x0 = way * (half + 0.2 - 0.1 * k)
                fold = cloth * (1.0 if k % 2 else 0.88)
                s.canvas.polygon(
                    quad(min(x0, x0 - 0.1 * way), max(x0, x0 - 0.1 * way), 0.35, high + 0.14),
                    fold,
                    "distractor",
                )
        s.canvas.polygon(
            quad(-half - 0.3, half + 0.3, high + 0.13, high + 0.17), flat.wood * 0.8, "distractor"
        )

    piece.free((0, 1, 0), show)
    stage.show(piece)
    spread = [(-half, 0, 0.5), (half, 0, 0.5), (half + 0.4, 0, 1.9), (-half + 0.4, 0, 1.9)]
    stage.canvas.soft(stage.outline(piece, spread), hexa("fff3d6"), 0.28, 0.012)


def _picture(stage: Stage, flat: Flat, rng: np.random.Generator, at: float, side: str) -> None:
    """A framed picture, a clock or a mirror-like tile on a wall."""
    piece = Piece("distractor", 0.6, 0.03, at=at, side=side)
    half, tall = rng.uniform(0.16, 0.34), rng.uniform(0.16, 0.3)
    y = rng.uniform(1.55, 1.75)
    frame = flat.wood * 0.8 if rng.random() < 0.5 else DARK
    inner = vary(rng, blend(flat.accent, WHITE, rng.uniform(0, 0.7)), 0.08)
    ground = vary(rng, hexa("d8c9a6"), 0.08)
    panels = [
        ("front", 0.07, 0.93, 0.08, 0.92, WHITE, 0),
        ("front", 0.16, 0.84, 0.2, 0.8, inner, 0),
        ("front", 0.16, 0.84, 0.58, 0.8, ground, 0),
        ("front", 0.55, 0.72, 0.27, 0.47, blend(inner, hexa("fff0b0"), 0.8), 0.5),
    ]
    piece.box((-half, half), (y - tall, y + tall), (0, 0.03), frame, 0, panels)
    stage.show(piece)


def _rug(stage: Stage, flat: Flat, rng: np.random.Generator) -> None:
    x, z = rng.uniform(-0.6, 0.6), rng.uniform(0.7, 1.6)
    w, d = rng.uniform(0.7, 1.2), rng.uniform(0.45, 0.7)
    hue = vary(rng, blend(flat.accent, flat.fabric, rng.uniform(0, 1)), 0.05)
    piece = Piece("distractor", 2 * w, 2 * d)
    if rng.random() < 0.4:
        for f, tone in ((1.0, 0.8), (0.9, 1.05), (0.6, 0.9), (0.52, 1.1)):
            ring = [
                (x + f * w * c, 0.0, DEPTH - z + f * d * s)
                for c, s in zip(np.cos(TURN), np.sin(TURN), strict=True)
            ]
            stage.canvas.polygon(stage.outline(piece, ring), hue * tone, "distractor")
        return
    for f, colour in (
        (1.0, hue * 0.75),
        (0.93, blend(hue, WHITE, 0.7)),
        (0.87, hue),
        (0.5, hue * 1.15),
        (0.42, hue * 0.9),
    ):
        area = (
            [
                (x + sx * f * w, 0.0, DEPTH - z + sy * (d - (1 - f) * w))
                for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
            ]
            if d > (1 - f) * w
            else None
        )
        if area:
            stage.canvas.polygon(stage.outline(piece, area), colour, "distractor")
