"""Maps made ready to be measured: stretched over the picture, and their places in order.

Taught in the chapter on measuring explanations. What measures of different kinds ask of a map is
asked of it here, so that all of them mean the same by its size and its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from siamcam_lib.errors import EvaluationError

ROUNDING = 1e-6  # values that differ by less, relative to the map's largest, are equal


def stretched(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Many maps at another size: bilinear, before any ReLU, as `siamcam_lib.explanation.stretch`.

    Args:
        maps: (..., h, w).
        size: Height and width wanted.

    Returns:
        (..., H, W) float32.

    Example:
        >>> stretched(torch.tensor([[0.0, 4.0]]), (1, 4)).tolist()
        [[0.0, 1.0, 3.0, 4.0]]
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:]).float()
    full = torch.nn.functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return full.view(*maps.shape[:-2], *size)


def rounded(maps: Tensor) -> Tensor:
    """Whole multiples of a millionth of each map's largest value, so that equals are equal.

    Stretching a flat map leaves differences in the last bit, which are no order.

    Args:
        maps: (..., h, w).

    Returns:
        (..., h, w), whole numbers from −10⁶ to 10⁶; 0 everywhere for a blank map.
    """
    largest = maps.abs().amax(dim=(-2, -1), keepdim=True)
    return (torch.where(largest > 0, maps / largest, 0) / ROUNDING).round()


def ranks(maps: Tensor, seed: int = 0) -> Tensor:
    """Where each place stands in the order of its map: 0 for the place with most.

    Places of equal value follow in a random order, which is the same for every map and batch. A
    blank map therefore gives a random order.

    Args:
        maps: (..., h, w).
        seed: Of the order of equals.

    Returns:
        (..., h, w) whole numbers, each of 0 to h·w − 1 once.

    Example:
        >>> ranks(torch.tensor([[0.5, -1.0], [0.0, 2.0]])).tolist()
        [[1, 3], [2, 0]]
    """
    flat = rounded(maps).flatten(-2)
    count = flat.shape[-1]
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = drawn[flat[..., drawn].argsort(dim=-1, descending=True, stable=True)]
    places = torch.arange(count).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).view(maps.shape)


def check_maps(maps: Tensor, leading: tuple[int, ...] | None = None) -> Tensor:
    """`maps` itself, if it is a set of finite maps.

    Args:
        maps: (..., h, w).
        leading: What the dimensions before h and w must be.

    Raises:
        EvaluationError: if it is not.
    """
    maps = torch.as_tensor(maps)
    wanted = "(..., h, w)" if leading is None else f"({', '.join(map(str, leading))}, h, w)"
    fits = maps.ndim >= 2 if leading is None else maps.shape[:-2] == leading
    if not fits or not maps.numel():
        raise EvaluationError(f"Maps {wanted} are needed, not {tuple(maps.shape)}.")
    if not torch.isfinite(maps).all():
        raise EvaluationError("A map holds values that are not finite; nothing can be measured.")
    return maps
