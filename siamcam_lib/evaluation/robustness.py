"""Does the map follow the picture and the network? Pictures move, noise is added, layers forget.

Taught in the chapter on measuring explanations. These measures explain changed pictures, or the
same pictures before a changed network, so they take the explainer itself. `agreement` holds two
sets of maps to each other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from siamcam_lib.embedder import Explainable
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation.ordering import check_maps, ranks, rounded, stretched
from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import check_count, check_share


class Continuity(NamedTuple):
    """How far maps change when their pictures are shifted.

    Attributes:
        still: (B, shifts) relative change, place by place.
        followed: (B, shifts) the same after each map is shifted back with its picture, over what
            both show.
    """

    still: np.ndarray
    followed: np.ndarray


def continuity(
    explainer: Explainer,
    pairs: Pairs,
    maps: Tensor | None = None,
    *,
    shifts: Sequence[int] = (0, 4, 8, 16),
    seed: int = 0,
) -> Continuity:
    r"""Change of the maps when both pictures of a pair are shifted sideways.

    :math:`\lVert H(x) - H(x')\rVert_2` as Bello et al. draw it for ExplainLFS, after Montavon et
    al. 2018, doi:10.1016/j.dsp.2017.10.011; here relative to the norm of H(x). Border pixels are
    mirrored. Read as it stands it rewards maps that ignore where things are; a map that follows
    its picture changes little once it is shifted back.

    Args:
        explainer: Fitted where it must be.
        pairs: B pairs.
        maps: Those of `explainer` on `pairs`, (B, 2, h, w), if they are there already.
        shifts: How far to the right, in pixels of the square the network looks at; negative to
            the left.
        seed: Of methods that draw.

    Returns:
        `Continuity`: float64, from 0 on; 0 for a shift of 0. Where H(x) is blank it is 1 if
        H(x′) is not. Lower is better.

    Raises:
        EvaluationError: if a shift is no whole number or as wide as the picture, or the maps are
            not (B, 2, h, w).

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=64)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> found = continuity(sc.explainers.get("edges"), pairs, shifts=(0, 8))
        >>> bool(found.followed[0, 1] < found.still[0, 1])
        True
    """
    size = pairs.pixels.shape[-1]
    for shift in shifts:
        if isinstance(shift, bool) or not isinstance(shift, int) or abs(shift) >= size:
            raise EvaluationError(
                f"A shift is a whole number of pixels, less than the {size} of the picture; not "
                f"{shift!r}."
            )
    here = _explained(explainer, pairs, maps, seed)
    still, followed = [], []
    for shift in shifts:
        moved = changed(pairs, _shifted(pairs.pixels, shift)) if shift else pairs
        there = explainer(moved, seed=seed) if shift else here
        still.append(relative_change(here, there))
        full, back = (stretched(m, (size, size)) for m in (here, there))
        both = full[..., max(0, -shift) : size - max(0, shift)]
        back = back[..., max(0, shift) : size - max(0, -shift)]
        followed.append(relative_change(both, back))
    return Continuity(np.stack(still, axis=1), np.stack(followed, axis=1))


def max_sensitivity(
    explainer: Explainer,
    pairs: Pairs,
    maps: Tensor | None = None,
    *,
    radius: float = 0.02,
    samples: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """Largest relative change of a pair's maps under small noise in both pictures.

    Yeh et al. 2019, arXiv:1901.09392, definition 2.4, by sampling: uniform noise of at most
    `radius` at every value, the largest of all samples counts. Pixels stay in [0, 1]. The maximum
    of few samples is too low for every explainer alike. A constant map is perfect here.

    Args:
        explainer: Fitted where it must be.
        pairs: B pairs.
        maps: Those of `explainer` on `pairs`, (B, 2, h, w), if they are there already.
        radius: Strictly between 0 and 1; captum's default is 0.02.
        samples: Draws of noise.
        seed: Of the noise, and of methods that draw.

    Returns:
        (B,) float64, from 0 on. Lower is better.

    Raises:
        EvaluationError: if the maps are not (B, 2, h, w).
        ExplanationError: if `radius` or `samples` is out of range.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=64)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> max_sensitivity(sc.explainers.get("edges"), pairs, samples=2).shape
        (1,)
    """
    check_share("radius", radius), check_count("samples", samples)
    here, largest = _explained(explainer, pairs, maps, seed), np.zeros(len(pairs))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        noise = (2 * torch.rand(pairs.pixels.shape, generator=draw) - 1) * radius
        there = explainer(changed(pairs, (pairs.pixels + noise).clamp(0, 1)), seed=seed)
        largest = np.maximum(largest, relative_change(here, there))
    return largest


def randomised_layers(
    explainer: Explainer,
    pairs: Pairs,
    maps: Tensor | None = None,
    *,
    stages: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """Are the maps still the same when the network has forgotten what it learnt?

    The sanity check of Adebayo et al. 2018, arXiv:1810.03292: layers are randomised from the top
    down, stage upon stage, and the maps compared with the first ones by Spearman's rank
    correlation. It is the randomised network that the explainer is given, a copy; the network
    itself stays as it is. A map that stays the same explains the picture, not the network.

    Weights of a layer are drawn from a normal distribution with the mean and the deviation of its
    trained weights, so that signals neither die nor explode. What an explainer learnt in `fit`
    stays.

    Args:
        explainer: Fitted where it must be.
        pairs: B pairs.
        maps: Those of `explainer` on `pairs`, (B, 2, h, w), if they are there already.
        stages: Into how many consecutive groups the layers are cut, from the top down.
        seed: Of the weights, and of methods that draw.
        progress: Show progress over the stages.

    Returns:
        (B, stages) float64 in [−1, 1]: the mean of both pictures; see `rank_correlation`. Near 0
        is good.

    Raises:
        EvaluationError: if the network has fewer layers than there are stages, or the maps are
            not (B, 2, h, w).
        ExplanationError: if `stages` is no positive whole number.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=64)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> randomised_layers(sc.explainers.get("edges"), pairs, stages=2)
        array([[1., 1.]])
    """
    check_count("stages", stages)
    here, seeing = _explained(explainer, pairs, maps, seed), copy.deepcopy(pairs.seeing)
    layers = layers_from_the_top(seeing, pairs.pixels[:1])
    if len(layers) < stages:
        raise EvaluationError(
            f"The network has {len(layers)} layers with weights; {stages} stages need as many."
        )
    draw, found = torch.Generator().manual_seed(seed), []
    cuts = [round(k * len(layers) / stages) for k in range(stages + 1)]
    for k in tqdm(range(stages), "randomised", disable=not progress, leave=False, unit="stage"):
        for layer in layers[cuts[k] : cuts[k + 1]]:
            _randomise(layer, draw)
        there = explainer(changed(pairs, pairs.pixels, seeing), seed=seed)
        found.append(rank_correlation(here, there).mean(axis=1))
    return np.stack(found, axis=1)


class Agreement(NamedTuple):
    """How alike two sets of maps are.

    Attributes:
        correlation: Spearman's rank correlation over the pixels, in [−1, 1].
        overlap: Share of the first map's highest pixels that are among the second's, in [0, 1].
    """

    correlation: np.ndarray
    overlap: np.ndarray


def agreement(first: Tensor, second: Tensor, *, share: float = 0.1, seed: int = 0) -> Agreement:
    """Agreement of two sets of maps: rank correlation, and overlap of the highest tenth.

    Bello et al. hold ExplainLFS to the map of Stylianou et al. 2019 in this way, the explainer
    ``"shared"`` here. It is agreement with a method, not truth. Unrelated maps have a correlation
    of 0 and an overlap of `share`.

    Args:
        first: (..., h, w).
        second: (..., h′, w′), as many; the coarser is stretched.
        share: How many pixels count as highest, strictly between 0 and 1.
        seed: Of the order of equal values.

    Returns:
        `Agreement`, (...) float64 each.

    Raises:
        EvaluationError: if there are not as many maps in both sets, or one is not finite.
        ExplanationError: if `share` is none.

    Example:
        >>> maps = torch.arange(20.0).view(1, 4, 5)
        >>> agreement(maps, maps), agreement(maps, -maps).correlation
        (Agreement(correlation=array([1.]), overlap=array([1.])), array([-1.]))
    """
    check_share("share", share)
    first = check_maps(first)
    second = check_maps(second, first.shape[:-2])
    height, width = (max(a, b) for a, b in zip(first.shape[-2:], second.shape[-2:], strict=True))
    first, second = (stretched(maps, (height, width)) for maps in (first, second))
    count = max(1, round(share * height * width))
    top = (ranks(first, seed) < count) & (ranks(second, seed) < count)
    overlap = top.flatten(-2).sum(dim=-1).double().numpy() / count
    return Agreement(rank_correlation(first, second), overlap)


def rank_correlation(first: Tensor, second: Tensor) -> np.ndarray:
    """Spearman's rank correlation of maps of one size, (..., h, w) twice → (...) float64.

    A map with one value has no order: its correlation with another such map is 1, else 0.

    Example:
        >>> maps = torch.tensor([[[1.0, 5.0, 2.0]], [[0.0, 0.0, 0.0]]])
        >>> rank_correlation(maps, maps**3), rank_correlation(maps[:1], maps[1:])
        (array([1., 1.]), array([0.]))
    """
    one, two = (stats.rankdata(rounded(m).flatten(-2).numpy(), axis=-1) for m in (first, second))
    one, two = (r - r.mean(axis=-1, keepdims=True) for r in (one, two))
    power = np.sqrt((one**2).sum(axis=-1) * (two**2).sum(axis=-1))
    flat = ~one.any(axis=-1) & ~two.any(axis=-1)
    together = (one * two).sum(axis=-1)
    return np.where(
        flat, 1.0, np.divide(together, power, out=np.zeros_like(power), where=power > 0)
    )


def relative_change(first: Tensor, second: Tensor) -> np.ndarray:
    """‖first − second‖₂ / ‖first‖₂ of each pair's maps: (B, ...) twice → (B,) float64.

    Where the first is blank: 0 if the second is blank too, else 1.

    Example:
        >>> relative_change(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 9.0]]))
        array([1.])
    """
    first, second = (x.flatten(1).double() for x in (first, second))
    size, moved = (torch.linalg.vector_norm(x, dim=1) for x in (first, first - second))
    return torch.where(size > 0, moved / size, (moved > 0).double()).numpy()


def changed(pairs: Pairs, pixels: Tensor, seeing: Explainable | None = None) -> Pairs:
    """The same pairs with other pixels, and before another network if one is given.

    Args:
        pairs: B pairs of n distinct pictures.
        pixels: (n, 3, S, S) in [0, 1], instead of theirs.
        seeing: Instead of their network.
    """
    other = copy.copy(pairs)
    for looked in ("seen", "compared"):
        vars(other).pop(looked, None)
    other.pixels, other.seeing = pixels, seeing or pairs.seeing
    return other


def layers_from_the_top(seeing: Explainable, pixels: Tensor) -> list[nn.Module]:
    """Modules with weights of their own, the last to run first.

    Args:
        seeing: The network.
        pixels: (k, 3, S, S), looked at once to see what runs.
    """
    ran: dict[nn.Module, None] = {}
    owners = [m for m in seeing.network.modules() if list(m.parameters(recurse=False))]
    hooks = [m.register_forward_hook(lambda module, *rest: ran.setdefault(module)) for m in owners]
    try:
        with torch.no_grad():
            seeing.embed(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return list(ran)[::-1]


@torch.no_grad()
def _randomise(layer: nn.Module, draw: torch.Generator) -> None:
    for weights in layer.parameters(recurse=False):
        fresh = torch.randn(weights.shape, generator=draw).to(weights)
        weights.copy_(weights.mean() + weights.std(correction=0) * fresh)


def _explained(explainer: Explainer, pairs: Pairs, maps: Tensor | None, seed: int) -> Tensor:
    return explainer(pairs, seed=seed) if maps is None else check_maps(maps, (len(pairs), 2))


def _shifted(pixels: Tensor, shift: int) -> Tensor:
    """Pictures moved to the right by `shift` pixels; what comes in at the border is mirrored."""
    size = pixels.shape[-1]
    pad = (max(0, shift), max(0, -shift))
    wider = torch.nn.functional.pad(pixels, (*pad, 0, 0), mode="reflect")
    return wider[..., -size:] if shift < 0 else wider[..., :size]
