"""Pictures painted over: what with, where, and how many at a time.

Taught in the chapter on the other explainers. Some explainers, and some measures of explanations,
hide a part of a picture and look again; what they hide it with is part of their answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from siamcam_lib.errors import ExplanationError

FILLS = ("mean", "blur", "black")
"""What a hidden place shows: the picture's mean colour, the picture out of focus, or black."""

BLUR = 0.05
"""Standard deviation of the blur as a share of the picture's side: 11 pixels of 224."""

AT_ONCE = 32  # changed pictures that are held in memory together


def fill(pixels: Tensor, kind: str) -> Tensor:
    """What is seen of each picture where it is hidden.

    Args:
        pixels: (..., 3, S, S) in [0, 1].
        kind: One of `FILLS`.

    Returns:
        As `pixels`.

    Raises:
        ExplanationError: if there is no such kind.

    Example:
        >>> picture = torch.eye(4).expand(3, 4, 4)
        >>> fill(picture, "mean")[0, 0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    check_fill(kind)
    if kind == "black":
        return torch.zeros_like(pixels)
    if kind == "mean":
        return pixels.mean(dim=(-2, -1), keepdim=True).expand_as(pixels).clone()
    side = min(pixels.shape[-2:])
    sigma = BLUR * side
    reach = min(math.ceil(3 * sigma), side - 1)  # the border is mirrored, at most once
    return tv.gaussian_blur(pixels, [2 * reach + 1] * 2, [sigma] * 2) if reach else pixels.clone()


def check_fill(kind: str) -> str:
    """`kind` itself, if it is one of `FILLS`.

    Raises:
        ExplanationError: if it is not.
    """
    if kind not in FILLS:
        raise ExplanationError(f"No fill is called {kind!r}; known are {', '.join(FILLS)}.")
    return kind


def check_count(name: str, value: int) -> int:
    """`value` itself, if it is a positive whole number.

    Raises:
        ExplanationError: if it is not; the message names the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExplanationError(f"{name} is a positive whole number, not {value!r}.")
    return value


def check_share(name: str, value: float) -> float:
    """`value` itself, if it lies strictly between 0 and 1.

    Raises:
        ExplanationError: if it does not; the message names the setting.
    """
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ExplanationError(f"{name} is a share strictly between 0 and 1, not {value!r}.")
    return value


def cover(pixels: Tensor, masks: Tensor, filling: Tensor) -> Tensor:
    """Pictures seen through masks; where a mask is 0, the filling is seen instead.

    Args:
        pixels: One picture (3, S, S) for all masks, or one for each: (m, 3, S, S).
        masks: (m, S, S) in [0, 1]; 1 keeps a place as it is.
        filling: What hides, as `pixels`; see `fill`.

    Returns:
        (m, 3, S, S).

    Example:
        >>> white, masks = torch.ones(3, 2, 2), torch.tensor([[[1.0, 0.0], [0.5, 1.0]]])
        >>> cover(white, masks, fill(white, "black"))[0, 0].tolist()
        [[1.0, 0.0], [0.5, 1.0]]
    """
    return torch.lerp(filling, pixels, masks[:, None])


def embed_covered(
    embed: Callable[[Tensor], Tensor], picture: Tensor, masks: Tensor, filling: Tensor
) -> Tensor:
    """Embeddings of one picture under every mask, a batch at a time.

    Args:
        embed: (k, 3, S, S) → (k, E), such as `Pairs.embed`.
        picture: (3, S, S).
        masks: (m, S, S), as `cover` takes them.
        filling: (3, S, S).

    Returns:
        (m, E).

    Example:
        >>> masks = torch.eye(200).view(200, 1, 200).expand(-1, 200, -1)
        >>> grey = torch.full((3, 200, 200), 0.5)
        >>> embed_covered(lambda x: x.mean(dim=(2, 3)), grey, masks, fill(grey, "black")).shape
        torch.Size([200, 3])
    """
    return torch.cat([embed(cover(picture, part, filling)) for part in masks.split(AT_ONCE)])


def random_masks(
    count: int, side: int, *, cells: int, keep: float, generator: torch.Generator
) -> Tensor:
    """Smooth random masks: coarse grids of zeros and ones, enlarged and shifted.

    As in RISE (Petsiuk et al. 2018, arXiv:1806.07421): each cell is kept with probability `keep`,
    the grid is enlarged bilinearly and shifted by up to one cell, so that no border between cells
    lies at the same place twice.

    Args:
        count: m, how many.
        side: S, of the pictures in pixels.
        cells: Cells in a row of the picture.
        keep: Probability that a cell is kept.
        generator: What draws.

    Returns:
        (m, S, S) float32 in [0, 1]; 1 keeps.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> masks = random_masks(200, 32, cells=4, keep=0.5, generator=draw)
        >>> masks.shape, round(float(masks.mean()), 1)
        (torch.Size([200, 32, 32]), 0.5)
    """
    kept = torch.rand(count, cells + 1, cells + 1, generator=generator) < keep
    shift = torch.rand(2, count, 1, generator=generator)
    place = (torch.arange(side) + 0.5) * cells / side - 0.5 + shift  # (2, m, S), in cells
    # Between two cells a pixel takes from each in proportion to how near it is.
    distance = place.clamp(0, cells)[..., None] - torch.arange(cells + 1)
    rows, columns = (1 - distance.abs()).clamp_min(0)  # (m, S, cells + 1) each
    return rows @ kept.float() @ columns.mT
