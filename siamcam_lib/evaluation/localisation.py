"""Does the map lie where the truth was planted? Energy, pointing, average precision.

Taught in the chapter on measuring explanations. Drawn scenes come with masks of the part that
decides, of the part a pair shares and of the shortcut; a map is held to one of them.

Maps are signed, and their positive part is held to the mask: what speaks for similarity. To hold
the evidence for dissimilarity to a mask, pass ``-maps``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation.ordering import check_maps, rounded, stretched

AT_ONCE = 64  # maps that are held in memory at the size of their pictures


def energy(maps: Tensor, masks: np.ndarray | Tensor) -> np.ndarray:
    """Share of the positive part of each map that lies inside its mask.

    The energy-based pointing game of Wang et al. 2020 (Score-CAM), arXiv:1910.01279, section 4.3.
    A map that says nothing gets the mask's share of the picture where it is even, and 0 where it
    is blank.

    Args:
        maps: (..., h, w), signed, at any resolution.
        masks: (..., H, W) bool, as many.

    Returns:
        (...) float64 in [0, 1].

    Raises:
        EvaluationError: if there is not one mask with at least one pixel for each map, or a map
            is not finite.

    Example:
        >>> half = torch.tensor([[[3.0, 1.0]]])
        >>> energy(half, np.array([[[True, False]]]))
        array([0.75])
    """

    def share(full: Tensor, inside: Tensor) -> Tensor:
        positive = full.double().clamp_min(0)
        total = positive.sum(dim=(1, 2))
        return torch.where(total > 0, (positive * inside).sum(dim=(1, 2)) / total, 0)

    return _measured(maps, masks, share)


def pointing(maps: Tensor, masks: np.ndarray | Tensor, *, tolerance: float = 0) -> np.ndarray:
    """Whether the maximum of each map lies inside its mask: the pointing game.

    Zhang et al. 2018, doi:10.1007/s11263-017-1059-x, who forgive 15 pixels.

    Args:
        maps: (..., h, w), signed, at any resolution.
        masks: (..., H, W) bool, as many.
        tolerance: How many pixels outside the mask are forgiven.

    Returns:
        (...) float64: 1 for a hit, 0 for a miss; where several pixels share the maximum, the
        share of them that hits. A map with no positive value points nowhere: 0.

    Raises:
        EvaluationError: as `energy`, or if the tolerance is negative.

    Example:
        >>> mask = np.array([[[False, True, False, False]]])
        >>> map_ = torch.tensor([[[0.0, 0.1, 0.9, 0.0]]])
        >>> pointing(map_, mask), pointing(map_, mask, tolerance=1)
        (array([0.]), array([1.]))
    """
    if not tolerance >= 0:
        raise EvaluationError(f"A tolerance is a number of pixels from 0 on, not {tolerance!r}.")

    def hit(full: Tensor, inside: Tensor) -> Tensor:
        if tolerance:
            far = [ndimage.distance_transform_edt(~mask) for mask in inside.numpy()]
            inside = torch.from_numpy(np.stack(far) <= tolerance)
        full = rounded(full)
        largest = full.amax(dim=(1, 2), keepdim=True)
        top = (full == largest) & (largest > 0)
        return (top & inside).sum(dim=(1, 2)) / top.sum(dim=(1, 2)).clamp_min(1).double()

    return _measured(maps, masks, hit)


def average_precision(maps: Tensor, masks: np.ndarray | Tensor) -> np.ndarray:
    r"""Average precision of each mask's pixels, when all pixels are ranked by the map.

    :math:`\sum_n (R_n - R_{n-1})\,P_n` over the distinct values of the map, as
    `sklearn.metrics.average_precision_score`, for many maps at once. Unlike `energy` it asks for
    the whole mask and does not reward a map for its contrast. A blank map, or a random one, gets
    about the mask's share of the picture.

    Args:
        maps: (..., h, w), signed, at any resolution. Negative values are ranked too.
        masks: (..., H, W) bool, as many.

    Returns:
        (...) float64 in (0, 1].

    Raises:
        EvaluationError: as `energy`.

    Example:
        >>> map_ = torch.tensor([[[0.9, 0.5, 0.1]]])
        >>> average_precision(map_, np.array([[[True, False, True]]])).round(3)
        array([0.833])
    """

    def precision(full: Tensor, inside: Tensor) -> Tensor:
        found = []
        for pixels, mask in zip((-rounded(full)).flatten(1), inside.flatten(1), strict=True):
            # Of the mask's pixels, and of all, how many are reached with each of the mask's: those
            # before it, and its equals.
            own = pixels[mask].sort().values
            hits = torch.searchsorted(own, own, right=True)
            reached = torch.searchsorted(own, pixels).bincount(minlength=len(own)).cumsum(0)
            found.append((hits / reached[: len(own)].double()).mean())
        return torch.stack(found)

    return _measured(maps, masks, precision)


def blank(maps: Tensor) -> np.ndarray:
    """Whether each map has no positive value: it names no place at all.

    Args:
        maps: (..., h, w), signed.

    Returns:
        (...) float64: 1 for a blank map, else 0. The mean is the share of blank maps.

    Raises:
        EvaluationError: if a map is not finite.

    Example:
        >>> blank(torch.tensor([[[-1.0, 0.0]], [[-1.0, 0.1]]]))
        array([1., 0.])
    """
    return (~(check_maps(maps) > 0).flatten(-2).any(dim=-1)).double().numpy()


def _measured(
    maps: Tensor, masks: np.ndarray | Tensor, measure: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    """A measure of stretched maps (m, H, W) and masks (m, H, W), a batch at a time."""
    maps = check_maps(maps)
    masks = masks if isinstance(masks, Tensor) else torch.from_numpy(np.array(masks))
    if masks.dtype != torch.bool or masks.shape[:-2] != maps.shape[:-2] or masks.ndim < 2:
        raise EvaluationError(
            f"Each map needs a mask of booleans: maps {tuple(maps.shape)} and masks "
            f"{tuple(masks.shape)} of {str(masks.dtype).removeprefix('torch.')} were given."
        )
    empty = int((~masks.flatten(-2).any(dim=-1)).sum())
    if empty:
        raise EvaluationError(
            f"{empty} masks hold no pixel: there is nothing to be found. Leave pictures that do "
            "not show the part out."
        )
    maps, size = maps.reshape(-1, *maps.shape[-2:]), masks.shape[-2:]
    parts = zip(maps.split(AT_ONCE), masks.reshape(-1, *size).split(AT_ONCE), strict=True)
    found = torch.cat([measure(stretched(m, size), mask) for m, mask in parts])
    return found.view(masks.shape[:-2]).double().numpy()
