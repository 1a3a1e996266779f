"""Class activation maps of a pair from the gradient at its feature maps.

Taught in the chapter on the other explainers. Grad-CAM's kin need of a network no more than a
feature map and the gradient of a score there. Both are known for every picture of a pair without
touching the backbone, so what a library is given is the score's tangent at the feature maps: a
network of one line with the same gradient. The layer it hooks runs once, for all pictures at once.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torchcam.methods import LayerCAM, XGradCAM

from siamcam_lib.errors import ExplanationError
from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.heads import Seen, TracedSeen


class Tangent(nn.Module):
    """The score near given feature maps, as a network: class 0 is similarity, 1 dissimilarity.

    Args:
        gradient: Of the similarity with respect to each picture's feature map, (m, K, h, w).

    Example:
        >>> Tangent(torch.ones(5, 2, 3, 3))(torch.rand(5, 2, 3, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.features = nn.Identity()  # what a library hooks
        self.gradient = gradient

    def forward(self, maps: Tensor) -> Tensor:
        """Scores of feature maps: (m, K, h, w) → (m, 2)."""
        similarity = (self.features(maps) * self.gradient).sum(dim=(1, 2, 3))
        return torch.stack([similarity, -similarity], dim=1)


def gradients(seen: Seen, rows: Tensor, v: Tensor) -> Tensor:
    r"""The gradient :math:`\partial\langle v,e\rangle/\partial A` at every place.

    Args:
        seen: Pictures after one look.
        rows: Which of them, (m,); one may come more than once.
        v: A direction of embedding space for each, (m, E).

    Returns:
        (m, K, h, w) float64 on the CPU; behind a head that pools, the same at every place.
    """
    if not isinstance(seen, TracedSeen):
        return seen.weights(rows, v)[:, :, None, None].expand(-1, -1, *seen.maps.shape[2:])
    found = torch.empty(len(rows), *seen.leaf.shape[1:], dtype=torch.float64)
    left = list(range(len(rows)))
    while left:  # one backward pass serves every image once
        turn = list({int(rows[k]): k for k in left}.values())
        direction = torch.zeros_like(seen.output)
        direction[rows[turn]] = v[turn].to(direction)
        found[turn] = seen._pull(direction)[rows[turn]].double().cpu()
        left = sorted(set(left) - set(turn))
    return found


SCORES = ("both", "similarity", "dissimilarity")


class GradientCAM(Explainer):
    r"""A class activation map of the similarity, less that of the dissimilarity.

    The two overlap, and their difference can be simpler than either: LayerCAM's is
    :math:`\sum_k G_k(p) A_k(p)` wherever A is not negative, which behind a head that pools is
    Grad-CAM. Ask for one score alone to see the method as it was published.

    Args:
        score: Whose map; one of `SCORES`. That of the dissimilarity is given as negative numbers.

    Raises:
        ExplanationError: if there is no such score, or `one_way` gives values below 0.
    """

    cost = "gradients"

    def __init__(self, score: str = "both") -> None:
        if score not in SCORES:
            raise ExplanationError(f"No score is called {score!r}; known are {', '.join(SCORES)}.")
        self.score = score

    @abstractmethod
    def one_way(self, maps: Tensor, gradient: Tensor) -> Tensor:
        """What speaks for a score with that gradient, as the method has it.

        Args:
            maps: Feature maps A, (m, K, h, w) float64.
            gradient: Of the score with respect to A, the same shape.

        Returns:
            (m, h, w), not negative.
        """

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        rows, _ = pairs.one_sided
        # A graph that began outside inference mode must be followed there too.
        with torch.inference_mode(False), torch.enable_grad():
            v = torch.cat([pairs.compared.v1, pairs.compared.v2])
            maps = pairs.seen.maps[rows].double()
            gradient = gradients(pairs.seen, rows, v)
            found = torch.zeros(len(rows), *maps.shape[2:], dtype=maps.dtype)
            if self.score != "dissimilarity":
                found += self._evidence(maps, gradient)
            if self.score != "similarity":
                found -= self._evidence(maps, -gradient)
        return pairs.two_sided(found)

    def _evidence(self, maps: Tensor, gradient: Tensor) -> Tensor:
        found = self.one_way(maps, gradient)
        if (found < 0).any():
            raise ExplanationError(
                f"{type(self).__name__}.one_way gave values below 0. It is asked for one score at "
                "a time, and what speaks against a score speaks for the other: end with a ReLU."
            )
        return found


def through(method: type[LayerCAM | XGradCAM], maps: Tensor, gradient: Tensor) -> Tensor:
    """The map of a method of torchcam, before any scaling; see `GradientCAM.one_way`."""
    network = Tangent(gradient)
    with method(network, "features") as cam:
        scores = network(maps.clone().requires_grad_())
        [found] = cam(class_idx=0, scores=scores, normalized=False)
    return found
