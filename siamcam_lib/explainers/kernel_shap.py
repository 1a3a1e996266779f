"""SHAP: the score shared out among superpixels by their Shapley values."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import torch
from torch import Tensor

from siamcam_lib.explainers.lime import LIME


class KernelSHAP(LIME):
    r"""The values that Kernel SHAP estimates: Shapley's, of the superpixels of both pictures.

    A superpixel's value is what it adds to the score when it is uncovered, on average over all
    orders in which the pieces of both pictures can be uncovered. The values sum to what the
    pictures have over hidden ones (efficiency):
    :math:`\sum_i \phi_i = s(\text{all shown}) - s(\text{all hidden})`, to rounding.

    Kernel SHAP estimates them by a regression on random sets of pieces. Here they are averaged
    over random orders, each with its reverse (after Castro et al. 2009,
    doi:10.1016/j.cor.2008.04.004). Each picture is looked at along its own orders; all ways to
    interleave an order of the first picture with one of the second are then averaged exactly,
    because comparing costs next to nothing.

    Args:
        segments: Superpixels a picture, about.
        samples: Copies of each picture with pieces hidden, about; at least one order and its
            reverse are taken. The values of few samples are noisy; where the samples are enough
            for all orders (2, 6, 24, 120 for 1 to 4 pieces) they are exact.
        fill: What hidden pieces show; one of `siamcam_lib.perturbing.FILLS`.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> ex = sc.explain(
        ...     sc.SiameseNet(image_size=64), images.image(0), images.image(1),
        ...     method=KernelSHAP(segments=4, samples=10),
        ... )
        >>> ex.raw[0].shape
        (64, 64)
    """

    title = "SHAP"
    source = "Lundberg and Lee 2017, arXiv:1705.07874, by sampled orders"
    limits = "Each piece is judged in company it never keeps; few samples make noisy values."

    def __init__(self, segments: int = 40, samples: int = 200, fill: str = "mean") -> None:
        super().__init__(segments, samples, fill)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Which of `count` pieces the copies of a picture show: bool (orders · (count + 1), count).

        Along each order none, one, two pieces and so on up to all are shown.
        """
        if factorial(min(count, 20)) * (count + 1) <= self.samples:
            rank = torch.tensor(list(permutations(range(count))))
        else:
            twos = max(1, self.samples // (2 * (count + 1)))
            rank = torch.rand(twos, count, generator=generator).argsort(dim=1)
            rank = torch.cat([rank, count - 1 - rank])
        uncovered = torch.arange(count + 1)
        return (rank[:, None] < uncovered[:, None]).flatten(0, 1)

    def values(self, shown1: Tensor, shown2: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Shapley values of the superpixels, (s1,) and (s2,) float64; as in `LIME`."""
        s1, s2 = shown1.shape[1], shown2.shape[1]
        # by order and number of pieces shown, of the first and of the second picture
        table = scores.double().unflatten(0, (-1, s1 + 1)).unflatten(2, (-1, s2 + 1))
        added1 = torch.einsum("iajb,ab->ia", table.diff(dim=1), interleaved(s1, s2))
        added2 = torch.einsum("iajb,ba->jb", table.diff(dim=3), interleaved(s2, s1))
        found = []
        for added, shown, others in ((added1, shown1, added2), (added2, shown2, added1)):
            rank = (~shown).unflatten(0, (len(added), -1)).sum(dim=1) - 1
            found.append((added / len(others)).gather(1, rank).mean(dim=0))
        return found[0], found[1]


def interleaved(own: int, other: int) -> Tensor:
    """How many pieces of the other picture are uncovered before each piece of one's own.

    Both orders are kept, and all ways to interleave them are equally likely.

    Args:
        own: s, pieces of one's own picture.
        other: t, pieces of the other.

    Returns:
        Probabilities, (s, t + 1): of b pieces of the other before the own piece at place a.

    Example:
        >>> interleaved(1, 1)
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    a, b = torch.arange(own).double()[:, None], torch.arange(other + 1).double()
    ways = _log_choices(a + b, b) + _log_choices(own - 1 - a + other - b, other - b)
    return (ways - _log_choices(torch.tensor(own + other).double(), b[-1])).exp()


def _log_choices(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the number of ways to choose k of n."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
