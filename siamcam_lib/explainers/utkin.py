"""Utkin et al.: perturb what a picture has in common with its class, and decode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siamcam_lib.datasets import ImageSet
from siamcam_lib.decoder import Decoder, as_compared, check_network, embeddings, train_decoder
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explaining import Explainer, Pairs


class Utkin(Explainer):
    """The features in which a picture is nearest to its class, perturbed and decoded.

    A class's prototype is the mean embedding of its training pictures, and a picture's class is
    that of the nearest prototype. The features nearest to the prototype's are perturbed at random;
    the map is how far the decoded picture moves, on average over the draws.

    Ours, because the descriptions leave it open: a feature's nearness and its perturbation are
    counted in its own spread over the training pictures, so that features that never vary are
    left out; how many features, how large the perturbations, how many draws. The published method
    trains an autoencoder whose code is drawn to the network's embedding; the weights of its losses
    are not given where we could read of it, and here the decoder of ExplainLFS takes its place.

    Args:
        nearest: Share of the features that are perturbed, in (0, 1].
        size: Standard deviation of the perturbation, in spreads of the feature.
        draws: Perturbations the map is averaged over.
        hidden: Hidden units of the decoder; see `siamcam_lib.decoder.Decoder`.
        decoder: That of an explainer fitted on the same network; prototypes are left to fit.

    Raises:
        ExplanationError: if a setting is wrong.

    Example:
        >>> import siamcam_lib as sc
        >>> images, net = sc.datasets.load("scenes/flowers", n=20), sc.SiameseNet(image_size=64)
        >>> shared = Decoder(256, network=as_explainable(net).digest())  # or that of another
        >>> explainer = Utkin(decoder=shared).fit(net, images, progress=False)
        >>> sc.explain(net, images.image(0), images.image(1), method=explainer).raw[0].shape
        (40, 40)
    """

    title = "Utkin et al."
    source = "Utkin et al. 2021, arXiv:1911.07702"
    cost = "trained decoder"
    signed = False
    paired = False
    needs = "labels"
    random = True
    limits = (
        "Explains why a picture belongs to its class, without regard to its partner; never "
        "negative; the decoder's training is ours, the paper's loss weights were not to be had."
    )

    def __init__(
        self,
        nearest: float = 0.1,
        size: float = 1.0,
        draws: int = 32,
        hidden: int = 256,
        decoder: Decoder | None = None,
    ) -> None:
        if not 0 < nearest <= 1:
            raise ExplanationError(f"nearest is a share in (0, 1], not {nearest!r}.")
        if not size > 0:
            raise ExplanationError(f"size is positive, not {size!r}.")
        if not isinstance(draws, int) or draws < 1:
            raise ExplanationError(f"draws is a positive whole number, not {draws!r}.")
        self.nearest, self.size, self.draws, self.hidden = nearest, size, draws, hidden
        self.given = self.decoder = decoder

    def fit(self, net: Any, images: ImageSet, *, seed: int = 0, progress: bool = True) -> Utkin:
        """Average each class, and train the decoder where none was given.

        Raises:
            ExplanationError: if there are fewer than two classes, or the decoder that was given
                is of another network.
        """
        seeing = as_explainable(net)
        if self.given is not None:
            self.given.check(seeing)
        e = embeddings(net, images, progress=progress)
        self.prototypes = prototypes(e, images)
        if self.given is None:
            self.decoder = train_decoder(
                net, images, hidden=self.hidden, seed=seed, progress=progress, embedded=e
            )
        self.fitted = True
        return self

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        decoder = self.decoder
        assert decoder is not None  # it was fitted
        check_network(decoder.network, pairs.seeing)
        h = as_compared(pairs.seeing, pairs.seen.embedding)
        chosen = self.chosen(h)
        # The same draws for every picture: its map depends neither on partner nor on batch.
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.draws, h.shape[1], generator=generator, dtype=h.dtype)
        moved = [
            decoder.change(h, h + chosen * (self.size * decoder.spread * one)) for one in noise
        ]
        return self._paired(torch.stack(moved).mean(dim=0), pairs)

    def chosen(self, h: Tensor) -> Tensor:
        """Which features of each picture are nearest to its prototype: (n, E) → bool (n, E)."""
        assert self.decoder is not None
        spread = self.decoder.spread
        prototype = self.prototypes[nearest_prototype(h, self.prototypes)]
        far = ((h - prototype).abs() / spread).where(spread > 0, torch.inf)
        count = max(1, round(self.nearest * int((spread > 0).sum())))
        return torch.zeros_like(h, dtype=torch.bool).scatter(
            1, far.topk(min(count, h.shape[1]), largest=False).indices, True
        )

    @staticmethod
    def _paired(maps: Tensor, pairs: Pairs) -> Tensor:
        return torch.stack([maps[pairs.first], maps[pairs.second]], dim=1)


def prototypes(e: Tensor, images: ImageSet) -> Tensor:
    """The mean embedding of each class that occurs: (n, E) → (classes, E).

    Raises:
        ExplanationError: if fewer than two classes occur.

    Example:
        >>> import siamcam_lib as sc
        >>> prototypes(torch.rand(20, 8), sc.datasets.load("scenes/flowers", n=20)).shape[1]
        8
    """
    labels = torch.from_numpy(images.labels)
    present = labels.unique()
    if len(present) < 2:
        raise ExplanationError(
            f"Prototypes tell classes apart, and {images.name!r} shows pictures of {len(present)} "
            "class; fit on labelled pictures of two classes or more."
        )
    return torch.stack([e[labels == label].mean(dim=0) for label in present])


def nearest_prototype(e: Tensor, prototypes: Tensor) -> Tensor:
    """Which class each embedding is nearest to: (n, E), (classes, E) → (n,) int64."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(e, prototypes, compute_mode=exact).argmin(dim=1)
