"""Does the network need what the map names? Places are hidden, and the network looks again.

Taught in the chapter on measuring explanations. Each measure follows the *decision score* of a
pair: 1 − y where the pair is judged similar, y where it is not. Places are hidden or shown in the
order of a map's evidence for that decision. One picture is changed, its partner stays, and both
sides are averaged, so that a pair has one value or one curve.

Any order scores something; only what differs from chance counts. The baseline of each measure is
the same measure of other maps: those of the explainer ``"random"``, which is as smooth as a
class activation map, or blank maps, ``torch.zeros_like(maps)``, whose places come in random order.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from siamcam_lib import perturbing
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation.ordering import check_maps, ranks, stretched
from siamcam_lib.explaining import Pairs
from siamcam_lib.perturbing import AT_ONCE, check_count, check_share, cover


def deletion(
    pairs: Pairs, maps: Tensor, *, steps: int = 10, fill: str = "blur", seed: int = 0
) -> np.ndarray:
    """Decision score while a picture is hidden, from the place with most evidence on.

    Petsiuk et al. 2018 (RISE), arXiv:1806.07421. The lower the curve, the better the map; its
    `area` sums it up. What is hidden is filled, and a filled picture is none the network has
    learnt: hold the curve to that of random maps.

    Args:
        pairs: B pairs.
        maps: (B, 2, h, w), signed; positive speaks for similarity.
        steps: In how many equal steps the whole picture goes.
        fill: What hidden places show; one of `siamcam_lib.perturbing.FILLS`.
        seed: Of the order of places with equal evidence.

    Returns:
        (B, steps + 1) float64 in [0, 1], from nothing hidden to everything.

    Raises:
        EvaluationError: if the maps are not (B, 2, h, w) or not finite, or `steps` is 1.
        ExplanationError: if there is no such fill, or `steps` is no positive whole number.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=32)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> curves = deletion(pairs, sc.explainers.get("shared")(pairs), steps=4)
        >>> curves.shape, area(curves).shape
        ((1, 5), (1,))
    """
    rest = _removed(pairs, maps, steps, fill, seed, hide=True)
    return np.concatenate([_start(pairs), rest, _end(pairs, fill)], axis=1)


def insertion(
    pairs: Pairs, maps: Tensor, *, steps: int = 10, fill: str = "blur", seed: int = 0
) -> np.ndarray:
    """Decision score while a hidden picture is shown, from the place with most evidence on.

    Petsiuk et al. 2018 (RISE), arXiv:1806.07421. The higher the curve, the better the map.

    Args:
        pairs: B pairs.
        maps: (B, 2, h, w), signed; positive speaks for similarity.
        steps: In how many equal steps the whole picture comes.
        fill: What is seen of hidden places; one of `siamcam_lib.perturbing.FILLS`.
        seed: Of the order of places with equal evidence.

    Returns:
        (B, steps + 1) float64 in [0, 1], from everything hidden to nothing.

    Raises:
        EvaluationError: as `deletion`.
        ExplanationError: as `deletion`.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=32)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> maps = sc.explainers.get("shared")(pairs)
        >>> shown, hidden = insertion(pairs, maps, steps=2), deletion(pairs, maps, steps=2)
        >>> bool(shown[0, -1] == hidden[0, 0] and shown[0, 0] == hidden[0, -1])
        True
    """
    rest = _removed(pairs, maps, steps, fill, seed, hide=False)
    return np.concatenate([_end(pairs, fill), rest, _start(pairs)], axis=1)


def selectivity(
    pairs: Pairs,
    maps: Tensor,
    *,
    patch: int = 5,
    steps: int = 20,
    every: int = 1,
    fill: str = "mean",
    seed: int = 0,
) -> np.ndarray:
    """Decision score while the patches with most evidence are hidden, one after another.

    The pixel flipping of Samek et al. 2017, doi:10.1109/TNNLS.2016.2599820, as Bello et al. do it
    for ExplainLFS: patches of 5 × 5 pixels ranked by the sum of their relevance, the first 20
    perturbed. Of pairs judged similar one picture is changed, of dissimilar pairs both, each by
    its own map. They plot the similarity: that is the decision score of pairs judged similar, and
    1 minus it for the others, where it is to rise.

    Twenty patches are 1% of a picture of 224 pixels, so that the score hardly moves and the area
    below it is nearly the first score: report the `area` of the `change`, beside that of a random
    order.

    Args:
        pairs: B pairs.
        maps: (B, 2, h, w), signed; positive speaks for similarity.
        patch: Side of a patch in pixels of the square the network looks at.
        steps: How many patches are hidden in the end.
        every: The network looks after each `every` patches; it divides `steps`.
        fill: What hidden places show; one of `siamcam_lib.perturbing.FILLS`.
        seed: Of the order of patches with equal evidence.

    Returns:
        (B, steps / every + 1) float64 in [0, 1], from the unchanged score on. Lower is better.

    Raises:
        EvaluationError: if the maps are not (B, 2, h, w) or not finite, or there are not as many
            patches.
        ExplanationError: if there is no such fill, or a number is no positive whole number.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=32)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> curves = selectivity(pairs, sc.explainers.get("shared")(pairs), every=5)
        >>> curves.shape, area(change(curves)).shape
        ((1, 5), (1,))
    """
    for name, value in (("patch", patch), ("steps", steps), ("every", every)):
        check_count(name, value)
    side = pairs.pixels.shape[-1]
    count = (-(-side // patch)) ** 2
    if steps > count or steps % every:
        raise EvaluationError(
            f"A picture of {side} pixels has {count} patches of {patch}: steps is at most that, "
            f"and a multiple of every; {steps} and {every} were given."
        )
    hidden = torch.arange(every, steps + 1, every)[:, None, None]

    def keep(evidence: Tensor) -> Tensor:
        order = _patch_ranks(evidence, patch, seed)
        return order[:, None] >= hidden

    e = _seen_through(pairs, maps, keep, len(hidden), fill)
    both = _score(pairs, *e.chunk(2))
    rest = torch.where(_similar(pairs)[:, None], _one_changed(pairs, e), both)
    return np.concatenate([_start(pairs), rest.numpy()], axis=1)


def road(
    pairs: Pairs,
    maps: Tensor,
    *,
    shares: Sequence[float] = (0.1, 0.2, 0.4),
    noise: float = 0.01,
    seed: int = 0,
) -> np.ndarray:
    """Decision score when the places with most evidence are removed and debiased.

    ROAD, remove and debias: Rong et al. 2022, arXiv:2202.00449. Each removed pixel becomes the
    mean of its neighbours, by one system of equations a picture, and a little noise, so that the
    shape of what was removed gives nothing away; by pytorch-grad-cam. With ``-maps`` the places
    with least evidence go first; the difference of the two is the library's combined measure.

    A picture takes 0.1 to 1 second for each share, at 224 pixels; larger shares take longer.

    Args:
        pairs: B pairs.
        maps: (B, 2, h, w), signed; positive speaks for similarity.
        shares: Which shares of the picture are removed, each strictly between 0 and 1.
        noise: Standard deviation of the noise; pixels lie in [0, 1].
        seed: Of the noise and of the order of places with equal evidence.

    Returns:
        (B, shares + 1) float64 in [0, 1], the unchanged score first. Lower is better.

    Raises:
        EvaluationError: if the maps are not (B, 2, h, w) or not finite, or no share is given.
        ExplanationError: if a share is none.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=32)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> road(pairs, sc.explainers.get("shared")(pairs), shares=(0.2, 0.5)).shape
        (1, 3)
    """
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer  # heavy, and needed here alone

    if not shares:
        raise EvaluationError("ROAD needs at least one share of the picture to remove.")
    limits = [round(check_share("share", s) * pairs.pixels[0, 0].numel()) for s in shares]
    evidence, (rows, _) = _evidence(pairs, maps), pairs.one_sided
    imputer, found = NoisyLinearImputer(noise), []
    own_seeds = pairs.seeds(seed)
    for part in torch.arange(len(rows)).split(max(1, AT_ONCE // len(limits))):
        changed = []
        for k in part.tolist():
            order = ranks(stretched(evidence[k], pairs.pixels.shape[-2:]), seed)
            # The imputer draws from torch's generator, and calls NumPy in an old way.
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
                torch.manual_seed(own_seeds[k])
                changed += [imputer(pairs.pixels[rows[k]], (order >= n).float()) for n in limits]
        found.append(pairs.embed(torch.stack(changed)))
    e = torch.cat(found).unflatten(0, (len(rows), len(limits)))
    return np.concatenate([_start(pairs), _one_changed(pairs, e).numpy()], axis=1)


def infidelity(
    pairs: Pairs,
    maps: Tensor,
    *,
    side: float = 0.25,
    samples: int = 32,
    fill: str = "mean",
    scaled: bool = True,
    seed: int = 0,
) -> np.ndarray:
    r"""How far the evidence a square hides is from the similarity that is lost with it.

    Yeh et al. 2019, arXiv:1901.09392, definition 2.1, with squares removed, one in each picture:
    :math:`\mathbb E_I\,(\beta\, I^\top \Phi - (f(x) - f(x - I)))^2`, where :math:`I^\top \Phi` is
    the sum of both maps over the two squares and f the similarity. With ``scaled`` the factor
    :math:`\beta = \mathbb E(I^\top\Phi\,\Delta f) / \mathbb E(I^\top\Phi)^2` fits each pair best,
    as their code and captum's ``normalize=True`` have it: a heatmap has no unit, and without it
    says nothing here. Without ``scaled`` β is 1, which is fair only to maps whose sum is the
    similarity. A blank map gets :math:`\mathbb E\,\Delta f^2`, the most there is with β.

    The squares depend on pair and seed alone: the network looks at them once, for however many
    explainers.

    Args:
        pairs: B pairs.
        maps: (B, 2, h, w), signed; positive speaks for similarity.
        side: Of a square, as a share of the picture's.
        samples: Draws of two squares.
        fill: What hidden places show; one of `siamcam_lib.perturbing.FILLS`.
        scaled: Whether the scale of each pair's maps is free.
        seed: Of the places of the squares.

    Returns:
        (B,) float64, from 0 on. Lower is better.

    Raises:
        EvaluationError: if the maps are not (B, 2, h, w) or not finite.
        ExplanationError: if there is no such fill, `side` is no share, or `samples` no count.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=32)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> maps = sc.explainers.get("shared")(pairs)
        >>> fair = infidelity(pairs, maps, samples=4)
        >>> bool(fair <= infidelity(pairs, maps, samples=4, scaled=False))
        True
    """
    check_share("side", side), check_count("samples", samples)
    corners, lost = _squares(pairs, side, samples, fill, seed)
    evidence = check_maps(maps, (len(pairs), 2)).transpose(0, 1).flatten(0, 1)
    sums = []
    for own, at in zip(evidence, corners, strict=True):
        full = stretched(own, pairs.pixels.shape[-2:]).double()
        sums.append(_square_masks(at, side, len(full)).flatten(1).double() @ full.flatten())
    told = torch.stack(torch.stack(sums).chunk(2)).sum(dim=0)
    if scaled:
        power = (told**2).mean(dim=1, keepdim=True)
        fit = (told * lost).mean(dim=1, keepdim=True)
        told = torch.where(power > 0, fit / power, 0) * told
    return ((told - lost) ** 2).mean(dim=1).numpy()


def area(curves: np.ndarray) -> np.ndarray:
    """Area under each curve, over an axis from 0 to 1: the mean height.

    Args:
        curves: (B, steps + 1), at equal steps.

    Returns:
        (B,) float64.

    Example:
        >>> area(np.array([[1.0, 0.5, 0.0]]))
        array([0.5])
    """
    return np.trapezoid(curves, axis=-1) / (np.shape(curves)[-1] - 1)


def change(curves: np.ndarray) -> np.ndarray:
    """Curves less their first value, the unchanged score: (B, steps + 1).

    Example:
        >>> change(np.array([[0.75, 0.5, 0.25]]))
        array([[ 0.  , -0.25, -0.5 ]])
    """
    return curves - curves[..., :1]


def for_decision(pairs: Pairs, maps: Tensor) -> Tensor:
    """Maps turned to the decision taken: positive speaks for it, negative against it.

    Args:
        pairs: B pairs.
        maps: (B, 2, h, w), signed; positive speaks for similarity.

    Returns:
        (B, 2, h, w): as they are where the pair is judged similar, else their negative.

    Raises:
        EvaluationError: if the maps are not (B, 2, h, w) or not finite.
    """
    sign = torch.where(_similar(pairs), 1, -1)[:, None, None, None]
    return sign * check_maps(maps, (len(pairs), 2))


def _for_all_explainers(function: Callable) -> Callable:
    """What depends on pairs and settings, and on no map, is worked out once and kept with them."""
    kept: WeakKeyDictionary[Pairs, dict[tuple, Any]] = WeakKeyDictionary()

    @functools.wraps(function)
    def once(pairs: Pairs, *settings: Any) -> Any:
        known = kept.setdefault(pairs, {})
        if settings not in known:
            known[settings] = function(pairs, *settings)
        return known[settings]

    return once


@_for_all_explainers
def _filling(pairs: Pairs, kind: str) -> Tensor:
    """What is seen of each distinct picture where it is hidden, (n, 3, S, S)."""
    return torch.cat([perturbing.fill(part, kind) for part in pairs.pixels.split(AT_ONCE)])


@_for_all_explainers
def _end(pairs: Pairs, kind: str) -> np.ndarray:
    """Decision score with all of one picture hidden, (B, 1)."""
    e, (rows, _) = pairs.embed(_filling(pairs, kind)), pairs.one_sided
    return _one_changed(pairs, e[rows][:, None]).numpy()


@_for_all_explainers
def _squares(
    pairs: Pairs, side: float, samples: int, kind: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Upper left corners of squares, (2B, samples, 2), and the similarity lost, (B, samples)."""
    size, (rows, _) = pairs.pixels.shape[-1], pairs.one_sided
    room, filling, corners, e = size - _pixels(side, size) + 1, _filling(pairs, kind), [], []
    for i, own in zip(rows, pairs.seeds(seed), strict=True):
        draw = torch.Generator().manual_seed(own)
        corners.append(torch.randint(room, (samples, 2), generator=draw))
        masks = (~_square_masks(corners[-1], side, size)).float()
        e.append(perturbing.embed_covered(pairs.embed, pairs.pixels[i], masks, filling[i]))
    first, second = torch.stack(e).chunk(2)
    left = pairs.score(first.flatten(0, 1), second.flatten(0, 1)).double().view(-1, samples)
    return torch.stack(corners), pairs.similarity[:, None] - left


def _square_masks(corners: Tensor, side: float, size: int) -> Tensor:
    """True inside squares: corners (m, 2) → (m, size, size)."""
    away = torch.arange(size) - corners[..., None]  # (m, 2, size)
    rows, columns = ((away >= 0) & (away < _pixels(side, size))).unbind(1)
    return rows[:, :, None] & columns[:, None, :]


def _pixels(side: float, size: int) -> int:
    return max(1, round(side * size))


def _similar(pairs: Pairs) -> Tensor:
    """Whether each pair is judged similar, (B,)."""
    return pairs.compared.dissimilarity < pairs.seeing.threshold


def _evidence(pairs: Pairs, maps: Tensor) -> Tensor:
    """Evidence for the decision taken, in the order of `Pairs.one_sided`: (2B, h, w)."""
    return for_decision(pairs, maps).transpose(0, 1).flatten(0, 1)


def _score(pairs: Pairs, first: Tensor, second: Tensor) -> Tensor:
    """Decision scores of embeddings (B, k, E) twice: (B, k)."""
    s = pairs.score(first.flatten(0, 1), second.flatten(0, 1)).double().view(first.shape[:2])
    return torch.where(_similar(pairs)[:, None], s, 1 - s)


def _start(pairs: Pairs) -> np.ndarray:
    """Decision score of the unchanged pair, (B, 1)."""
    s = pairs.similarity
    return torch.where(_similar(pairs), s, 1 - s)[:, None].double().numpy()


def _one_changed(pairs: Pairs, e: Tensor) -> Tensor:
    """Mean decision score of both sides, one changed at a time: (2B, k, E) → (B, k)."""
    known = pairs.seen.embedding
    first, second = e.chunk(2)
    one = _score(pairs, first, known[pairs.second][:, None].expand_as(first))
    two = _score(pairs, known[pairs.first][:, None].expand_as(second), second)
    return (one + two) / 2


def _removed(
    pairs: Pairs, maps: Tensor, steps: int, fill: str, seed: int, *, hide: bool
) -> np.ndarray:
    """Decision score between both ends of `deletion` or `insertion`: (B, steps − 1)."""
    if check_count("steps", steps) < 2:
        raise EvaluationError("A curve of one step shows no order; steps is at least 2.")
    area = pairs.pixels[0, 0].numel()
    limits = torch.tensor([round(k * area / steps) for k in range(1, steps)]).view(-1, 1, 1)

    def keep(evidence: Tensor) -> Tensor:
        first = ranks(evidence, seed)[:, None] < limits
        return ~first if hide else first

    return _one_changed(pairs, _seen_through(pairs, maps, keep, len(limits), fill)).numpy()


def _patch_ranks(evidence: Tensor, patch: int, seed: int) -> Tensor:
    """Place of each pixel's patch in the order of summed evidence: (k, S, S) → (k, S, S)."""
    size = evidence.shape[-1]
    rest = -size % patch  # the last row and column of patches may be narrower
    padded = torch.nn.functional.pad(evidence, (0, rest, 0, rest))
    order = ranks(torch.nn.functional.avg_pool2d(padded, patch), seed)
    return order.repeat_interleave(patch, -2).repeat_interleave(patch, -1)[..., :size, :size]


def _seen_through(
    pairs: Pairs, maps: Tensor, keep: Callable[[Tensor], Tensor], looks: int, fill: str
) -> Tensor:
    """Embeddings of every picture of every pair, through masks that follow from its map.

    Args:
        pairs: B pairs.
        maps: (B, 2, h, w).
        keep: Evidence (k, S, S) → what stays visible, bool (k, looks, S, S).
        looks: How often each picture is looked at.
        fill: What hidden places show.

    Returns:
        (2B, looks, E) float64, in the order of `Pairs.one_sided`.
    """
    evidence, (rows, _) = _evidence(pairs, maps), pairs.one_sided
    filling, found = _filling(pairs, fill), []
    for part in torch.arange(len(rows)).split(max(1, AT_ONCE // looks)):
        masks = keep(stretched(evidence[part], pairs.pixels.shape[-2:])).flatten(0, 1).float()
        own = rows[part].repeat_interleave(looks)
        found.append(pairs.embed(cover(pairs.pixels[own], masks, filling[own])))
    return torch.cat(found).unflatten(0, (len(rows), looks))
