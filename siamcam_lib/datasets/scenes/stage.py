"""A bare stage in perspective: boxes and cylinders in metres become shapes in the picture.

What the room scenes are drawn with; no chapter teaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from siamcam_lib.datasets.scenes.canvas import Canvas
from siamcam_lib.datasets.scenes.marks import rounded

HALF, HEIGHT, DEPTH = 2.0, 2.5, 3.2
"""The room in metres: x from −HALF to HALF, y up from the floor, z away to the back wall."""

Point = tuple[float, float, float]
Span = tuple[float, float]
Panel = tuple[str, float, float, float, float, np.ndarray, float]
"""Something flat on a face of a box: the face; from u0 to u1 and v0 to v1 in shares of it, left to
right and top to bottom; its colour; the radius of its corners in shares."""


class Camera:
    """A pinhole with a shifted lens, so that uprights stay upright.

    Args:
        rng: Sets where the viewer stands.
        towards: −1 or 1 to step back from the left or the right wall and turn to it, else 0.
    """

    def __init__(self, rng: np.random.Generator, towards: int = 0) -> None:
        self.x = float(rng.uniform(-0.6, 0.6)) - 0.5 * towards
        self.y = float(rng.uniform(1.4, 1.75))
        self.z = float(rng.uniform(-2.7, -2.2))
        yaw = -0.19 * self.x + 0.1 * towards + float(rng.normal(0, 0.05))
        self.cos, self.sin = float(np.cos(yaw)), float(np.sin(yaw))
        self.focal = float(rng.uniform(1.22, 1.42)) * (0.84 if towards else 1.0)
        self.middle = float(rng.uniform(0.31, 0.38))

    def __call__(self, point: Point) -> tuple[float, float]:
        """Where a point of the room is in the picture."""
        dx, dz = point[0] - self.x, point[2] - self.z
        across = self.cos * dx - self.sin * dz
        away = max(self.sin * dx + self.cos * dz, 0.25)
        return (
            0.5 + self.focal * across / away,
            self.middle - self.focal * (point[1] - self.y) / away,
        )

    def distance(self, point: Point) -> float:
        """Squared distance of a point from the lens."""
        return (point[0] - self.x) ** 2 + (point[1] - self.y) ** 2 + (point[2] - self.z) ** 2


@dataclass
class Piece:
    """A piece of furniture in its own coordinates.

    X runs along its width from the middle, Y up, Z from its back to its front. Solids of a lower
    layer are drawn first; within a layer the farthest is.
    """

    part: str
    wide: float
    deep: float
    solids: list[tuple[int, Point, Callable[[Stage, Piece], None]]] = field(default_factory=list)
    layer: int = 0
    at: float = 0.0
    out: float = 0.0
    side: str = "back"
    shadow: bool = True

    def place(self, point: Point) -> Point:
        """A point of the piece in the room."""
        x, y, z = point
        if self.side == "left":
            return (-HALF + self.out + z, y, self.at + x)
        if self.side == "right":
            return (HALF - self.out - z, y, self.at - x)
        if self.side == "turned":  # its back to the viewer
            return (self.at - x, y, DEPTH - self.out + z - self.deep)
        return (self.at + x, y, DEPTH - self.out - z)

    def middle(self) -> Point:
        """The middle of its footprint, in the room."""
        return self.place((0.0, 0.0, 0.5 * self.deep))

    def box(
        self,
        x: Span,
        y: Span,
        z: Span,
        colour: np.ndarray,
        soft: float = 0.0,
        panels: Sequence[Panel] = (),
    ) -> None:
        """Add a box; `soft` rounds its faces by that share, `panels` lie on them."""

        def show(stage: Stage, piece: Piece) -> None:
            stage.box(piece, x, y, z, colour, soft, panels)

        middle = (0.5 * (x[0] + x[1]), 0.5 * (y[0] + y[1]), 0.5 * (z[0] + z[1]))
        self.solids.append((self.layer, middle, show))

    def drum(
        self,
        x: float,
        z: float,
        y: Span,
        radii: Span,
        colour: np.ndarray,
        lid: np.ndarray | None = None,
    ) -> None:
        """Add an upright cylinder or cone with a radius below and one above."""

        def show(stage: Stage, piece: Piece) -> None:
            stage.drum(piece, x, z, y, radii, colour, lid)

        self.solids.append((self.layer, (x, 0.5 * (y[0] + y[1]), z), show))

    def free(self, at: Point, show: Callable[[Stage, Piece], None]) -> None:
        """Add anything else, drawn by `show(stage, piece)`."""
        self.solids.append((self.layer, at, show))

    def up(self) -> None:
        """What comes now stands on or before what came so far."""
        self.layer += 1


# The faces of a box: name and corners (bit 0 of the index is x, bit 1 y, bit 2 z), in an order
# that makes the normal point outwards once `Piece.place` has mirrored the piece into the room.
FACES = (
    ("front", (6, 7, 5, 4)),
    ("rear", (3, 2, 0, 1)),
    ("left", (2, 6, 4, 0)),
    ("right", (7, 3, 1, 5)),
    ("top", (2, 3, 7, 6)),
    ("base", (4, 5, 1, 0)),
)
TURN = np.linspace(0, 2 * np.pi, 22, endpoint=False)


class Stage:
    """Canvas and camera together: draws solids of pieces."""

    def __init__(self, canvas: Canvas, camera: Camera) -> None:
        self.canvas = canvas
        self.camera = camera

    def outline(self, piece: Piece, points: Sequence[Point]) -> np.ndarray:
        """Points of a piece in the picture (n, 2)."""
        return np.array([self.camera(piece.place(p)) for p in points])

    def box(
        self,
        piece: Piece,
        x: Span,
        y: Span,
        z: Span,
        colour: np.ndarray,
        soft: float,
        panels: Sequence[Panel],
    ) -> None:
        """Draw the faces of a box that look at the camera."""
        corners = [piece.place((x[i & 1], y[(i >> 1) & 1], z[(i >> 2) & 1])) for i in range(8)]
        seen = [self.camera(c) for c in corners]
        eye = self.camera
        for name, index in FACES:
            a, b, c, d = (corners[i] for i in index)
            normal = _cross(a, b, d)
            look = (
                (eye.x - a[0]) * normal[0] + (eye.y - a[1]) * normal[1] + (eye.z - a[2]) * normal[2]
            )
            if look <= 0:
                continue
            tone = _light(normal)
            quad = np.array([seen[i] for i in index])
            shape = quad if soft == 0 else _round_quad(quad, soft)
            if soft:
                self.canvas.polygon(shape, colour * tone * 0.86, piece.part)
                inner = shape.mean(0) + 0.95 * (shape - shape.mean(0)) - [0.0, 0.0015]
                self.canvas.shaded(
                    inner, quad[:2].mean(0), colour * tone * 0.97, colour * tone * 1.06, None, 3
                )
            else:
                self.canvas.polygon(shape, colour * tone, piece.part)
            for face, u0, u1, v0, v1, tint, r in panels:
                if face == name:
                    area = _quad_part(quad, u0, u1, v0, v1)
                    shape = area if r == 0 else _round_quad(area, r)
                    self.canvas.polygon(shape, tint * tone, piece.part)

    def drum(
        self,
        piece: Piece,
        x: float,
        z: float,
        y: Span,
        radii: Span,
        colour: np.ndarray,
        lid: np.ndarray | None,
    ) -> None:
        """Draw a cylinder: body, a lit stripe, the lid."""
        rings = [
            self.outline(
                piece,
                [
                    (x + r * c, h, z + r * s)
                    for c, s in zip(np.cos(TURN), np.sin(TURN), strict=True)
                ],
            )
            for h, r in zip(y, radii, strict=True)
        ]
        hull = _hull(np.concatenate(rings))
        self.canvas.polygon(hull, colour * 0.78, piece.part)
        middle = hull.mean(0)
        for width, shift, tone in ((0.72, -0.08, 0.93), (0.4, -0.16, 1.05)):
            span = np.ptp(hull[:, 0])
            stripe = middle + (hull - middle) * [width, 0.985] + [shift * span, 0]
            self.canvas.polygon(stripe, colour * tone)
        if self.camera.y > y[1]:
            self.canvas.polygon(rings[1], (colour * 1.1 if lid is None else lid), piece.part)

    def show(self, piece: Piece) -> None:
        """Draw all solids of a piece."""
        order = sorted(piece.solids, key=lambda s: (s[0], -self.camera.distance(piece.place(s[1]))))
        for _, _, draw_solid in order:
            draw_solid(self, piece)

    def ground_shadow(self, piece: Piece) -> None:
        """Darken the floor under a piece."""
        w, d = 0.5 * piece.wide + 0.05, piece.deep + 0.1
        area = self.outline(piece, [(-w, 0, 0.0), (w, 0, 0.0), (w, 0, d), (-w, 0, d)])
        self.canvas.soft(area, (0.1, 0.06, 0.05), 0.42, 0.018)


def _cross(a: Point, b: Point, d: Point) -> Point:
    u = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
    v = (d[0] - a[0], d[1] - a[1], d[2] - a[2])
    return (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])


def _light(normal: Point) -> float:
    x, y, z = normal
    size = (x * x + y * y + z * z) ** 0.5 or 1.0
    return 0.9 + 0.16 * y / size - 0.04 * z / size - 0.13 * x / size


@lru_cache(maxsize=64)
def _weights(r: float) -> np.ndarray:
    """Bilinear weights (24, 4) of the outline of a unit square with corners of radius `r`."""
    uv = rounded(0.0, 0.0, 1.0, 1.0, min(r, 0.5))
    u, v = uv[:, 0], uv[:, 1]
    return np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], 1)


def _round_quad(quad: np.ndarray, r: float) -> np.ndarray:
    return _weights(r) @ quad


def _quad_part(quad: np.ndarray, u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
    """The part of a quad from u0 to u1 (left to right) and v0 to v1 (top to bottom)."""
    u, v = np.array([u0, u1, u1, u0])[:, None], np.array([v0, v0, v1, v1])[:, None]
    return (
        (1 - u) * (1 - v) * quad[0]
        + u * (1 - v) * quad[1]
        + u * v * quad[2]
        + (1 - u) * v * quad[3]
    )


def _hull(points: np.ndarray) -> np.ndarray:
    """Convex hull of points (n, 2), Andrew's monotone chain."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(seq: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        out: list[tuple[float, float]] = []
        for p in seq:
            while (
                len(out) > 1
                and (
                    (out[-1][0] - out[-2][0]) * (p[1] - out[-2][1])
                    - (out[-1][1] - out[-2][1]) * (p[0] - out[-2][0])
                )
                <= 0
            ):
                out.pop()
            out.append(p)
        return out[:-1]

    return np.array(chain(ordered) + chain(reversed(ordered)))
