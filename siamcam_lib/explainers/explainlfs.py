"""ExplainLFS: shift the features that decide, decode, and see which pixels move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siamcam_lib.datasets import ImageSet
from siamcam_lib.decoder import Decoder, as_compared, train_decoder
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explaining import Explainer, Pairs


class ExplainLFS(Explainer):
    r"""Local perturbations in the latent feature space, for one decision about one pair.

    Each feature j gets a relevance (`relevance`), both embeddings are shifted by it,
    :math:`h_j(p) = h_j + p R_j` (eq. 4), and the map is how far the decoded picture moves. It is
    positive where the pair is judged similar and negative where it is judged dissimilar: a map
    never holds evidence for both.

    What the method does not tell or does not hold:

    - A feature that neither picture has differs least, and so counts most for "similar".
    - Relevance is never negative, so the shift adds to every feature and takes from none.
    - The map is said not to depend on p. It grows in proportion to p, the same everywhere, only
      where the decoder is affine (``hidden=0``) or nearly so.
    - An affine decoder moves by :math:`p W R` whatever it started from: both pictures of a pair
      get the same map. This is so for the decoder without hidden layers that the paper draws.
    - Embeddings of unit length are short: the shift of a similar pair can be p√E, several times
      as long as the embedding.
    - How differences are scaled before they are compared with ξ₂ is not said. Here the largest
      of each map is 1.
    - Where all features differ equally, :math:`D^+ = D^-`, eq. (3) is 0/0; see
      `normalised_difference`.

    Args:
        p: How far features are shifted, in [0, 1].
        xi2: ξ₂, in [0, 1): what does not exceed this share of the map's largest value is set to
            zero, as in Algorithm 1; 0 keeps the whole map.
        hidden: Hidden units of the decoder; see `siamcam_lib.decoder.Decoder`.
        decoder: That of an explainer fitted on the same network; nothing is left to fit then.

    Raises:
        ExplanationError: if a setting is wrong.

    Example:
        >>> import siamcam_lib as sc
        >>> images, net = sc.datasets.load("scenes/flowers", n=20), sc.SiameseNet(image_size=64)
        >>> shared = Decoder(256, network=as_explainable(net).digest())  # or that of another
        >>> ex = sc.explain(
        ...     net, images.image(0), images.image(1), method=ExplainLFS(decoder=shared)
        ... )
        >>> ex.raw[0].shape
        (40, 40)
    """

    title = "ExplainLFS"
    source = "Bello et al. 2024, doi:10.1016/j.inffus.2024.102407"
    cost = "trained decoder"
    needs = "images"
    limits = (
        "What neither picture shows counts most for similarity; a map is all for the decision "
        "taken; it shows what the decoder learned, not where the network looked."
    )

    def __init__(
        self, p: float = 0.3, xi2: float = 0.7, hidden: int = 256, decoder: Decoder | None = None
    ) -> None:
        if not 0 <= p <= 1:
            raise ExplanationError(f"p lies in [0, 1], not at {p!r}.")
        if not 0 <= xi2 < 1:
            raise ExplanationError(f"xi2 lies in [0, 1), not at {xi2!r}.")
        self.p, self.xi2, self.hidden = p, xi2, hidden
        self.given = self.decoder = decoder
        self.fitted = decoder is not None

    def fit(
        self, net: Any, images: ImageSet, *, seed: int = 0, progress: bool = True
    ) -> ExplainLFS:
        """Train the decoder, or check the one that was given; see `train_decoder`."""
        if self.given is None:
            self.decoder = train_decoder(
                net, images, hidden=self.hidden, seed=seed, progress=progress
            )
        assert self.decoder is not None  # given or trained
        self.decoder.check(as_explainable(net))
        self.fitted = True
        return self

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        decoder = self.decoder
        assert decoder is not None  # it was fitted
        decoder.check(pairs.seeing)
        h = as_compared(pairs.seeing, pairs.seen.embedding)
        h1, h2 = h[pairs.first], h[pairs.second]
        similar = pairs.compared.dissimilarity < pairs.seeing.threshold
        shift = self.p * relevance(h1, h2, similar)
        moved = torch.stack([decoder.change(h, h + shift) for h in (h1, h2)], dim=1)
        shown = moved > self.xi2 * moved.amax(dim=(2, 3), keepdim=True)
        sign = torch.where(similar, 1.0, -1.0)[:, None, None, None]
        return sign * moved * shown


def normalised_difference(h1: Tensor, h2: Tensor) -> Tensor:
    r"""Difference of each feature, from 0 for the least to 1 for the most: eq. (3).

    :math:`\bar d_j = (|h^1_j - h^2_j| - D^-) / (D^+ - D^-)` with the smallest and the largest
    difference :math:`D^-` and :math:`D^+` of the pair. Where they are equal, as for a picture and
    itself, the equation is 0/0, and no feature differs more than another: all get 0.

    Args:
        h1: (m, N).
        h2: (m, N).

    Returns:
        (m, N) in [0, 1].

    Example:
        >>> normalised_difference(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 5.0]]))
        tensor([[0.0000, 0.5000, 1.0000]])
    """
    d = (h1 - h2).abs()
    low, high = d.amin(dim=-1, keepdim=True), d.amax(dim=-1, keepdim=True)
    return (d - low) / torch.where(high > low, high - low, 1)


def relevance(h1: Tensor, h2: Tensor, similar: Tensor) -> Tensor:
    r"""How much each feature counts for the decision: eq. (2).

    :math:`1 - \bar d_j` for a pair judged similar, :math:`\bar d_j` otherwise. Features that are
    zero in both embeddings differ least: they get 1, the most there is, for "similar".

    Args:
        h1: (m, N).
        h2: (m, N).
        similar: Whether each pair is judged similar, bool (m,).

    Returns:
        (m, N) in [0, 1].

    Example:
        >>> h1, h2 = torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([[0.0, 3.0, 5.0]])
        >>> relevance(h1, h2, torch.tensor([True]))
        tensor([[1.0000, 0.5000, 0.0000]])
    """
    d = normalised_difference(h1, h2)
    return torch.where(similar[:, None], 1 - d, d)
