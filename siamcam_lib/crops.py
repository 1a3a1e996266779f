r"""`FiveLooks`: a backbone that sees a picture as a whole and, nearer, each of its corners.

Taught in the Flowers chapter. In one look at a picture a flower may be small. Five looks show it
nearer, and cost five times as much. Their feature maps are joined into one, so that everything that
holds for a feature map, the closed form of chapter 4 first of all, holds for five looks too, and
exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

SHARE = 0.7
"""Side of a corner, as a share of the picture's: the four overlap, and the middle is in all."""


class FiveLooks(nn.Module):
    r"""The whole picture and its four corners, through one backbone.

    Corners are squares of :data:`SHARE` of the side, and the whole picture is brought to their
    size, so that a corner shows its part enlarged. The map of look k lies on the part of the
    picture that it saw; each place of the joined map collects what lies on it,

    .. math:: A(p) = \tfrac15 \textstyle\sum_k \sum_q \tfrac{Z}{Z_k}\,\mu_k(p, q)\, A_k(q), \qquad
              \tfrac1Z \textstyle\sum_p A(p) = \tfrac15 \sum_k \tfrac1{Z_k} \sum_q A_k(q)

    with :math:`\mu_k(p, q)` the share of place q of look k that lies on place p. So the pooled
    feature of the joined map is the mean of the five pooled features: nothing is lost by joining.

    In training mode a picture is looked at once: there random crops take the place of the looks.

    Whoever explains by hooks, with captum say, takes this module as the layer. `inner` runs five
    times for a picture, and a hook in it may keep the last corner alone.

    Args:
        inner: (B, 3, s, s) → (B, K, h, w).

    Example:
        >>> five = FiveLooks(nn.AvgPool2d(32)).eval()
        >>> five(torch.ones(2, 3, 320, 320)).shape
        torch.Size([2, 3, 10, 10])
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        if self.training:
            return self.inner(images)
        return self.join([self.inner(look) for look in self.cut(images)])

    def extra_repr(self) -> str:  # noqa: D102
        return f"corners of {SHARE}"

    def cut(self, images: Tensor) -> list[Tensor]:
        """What is looked at: (B, 3, S, S) → five of (B, 3, s, s), the whole picture first."""
        sides = images.shape[2:]
        high, wide = (round(SHARE * side) for side in sides)
        down, right = sides[0] - high, sides[1] - wide
        smaller = (
            _lying(side, 0, 1, near).to(images) * near / side  # a pixel is a mean of pixels
            for side, near in zip(sides, (high, wide), strict=True)
        )
        corners = [images[:, :, y : y + high, x : x + wide] for y in (0, down) for x in (0, right)]
        return [_moved(images, *smaller), *corners]

    def join(self, maps: list[Tensor]) -> Tensor:
        """One map of five: (B, K, h, w) each → (B, K, H, W), H = h/SHARE rounded, W likewise."""
        rows, columns = (
            [
                _lying(places, start, end, grid).to(maps[0]) * grid / places
                for start, end in ((0, 1), (0, SHARE), (1 - SHARE, 1))
            ]
            for places in maps[0].shape[2:]
            for grid in [round(places / SHARE)]
        )
        where = [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
        parts = [_moved(own, rows[y], columns[x]) for own, (y, x) in zip(maps, where, strict=True)]
        return torch.stack(parts).mean(dim=0)


def _lying(parts: int, start: float, end: float, places: int) -> Tensor:
    """Which share of each of the equal parts of [start, end] lies on each place of [0, 1].

    Returns:
        (places, parts) float64; every column adds up to 1.

    Example:
        >>> _lying(2, 0, 1, 4)[:, 0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    edges, grid = np.linspace(start, end, parts + 1), np.linspace(0, 1, places + 1)
    upper = np.minimum(edges[None, 1:], grid[1:, None])
    lower = np.maximum(edges[None, :-1], grid[:-1, None])
    return torch.from_numpy((upper - lower).clip(min=0) * parts / (end - start))


def _moved(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps brought onto another grid: (B, K, h, w), (H, h), (W, w) → (B, K, H, W)."""
    return rows @ maps @ columns.T
