"""`Explainer` and `Pairs`: what every explainer is given, and what it gives and says of itself.

Taught in the chapter on the other explainers. Each explainer is one file in
`siamcam_lib.explainers`, and all of them answer the same question in the same form: given a network
and pairs of pictures, which places of each picture speak for the similarity of the pair, and which
against it?
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from siamcam_lib import gradcam
from siamcam_lib.datasets import ImageSet
from siamcam_lib.embedder import Compared, as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.heads import Seen
from siamcam_lib.model import squares

CLOSED_FORMS = ("gradcam", *gradcam.COMBINATIONS)
"""Explainers whose maps are products of projected maps and embeddings: any two pictures of a
gallery are explained by them without another look."""

COSTS = ("closed form", "gradients", "perturbations", "trained decoder", "control")
"""What an explainer's time is spent on."""


class Pairs:
    """B pairs of pictures in front of a network, as every explainer gets them.

    Each distinct picture is looked at once, however many explainers ask and in however many pairs
    it comes.

    Args:
        net: The network, as in `sc.explain`.
        lefts: First pictures, RGB.
        rights: Second pictures, as many.

    Attributes:
        seeing: The network as explanations need it.
        first: (B,) which of the distinct pictures comes first in each pair.
        second: (B,) the same for the second.
        pixels: Distinct pictures as the network sees them: (n, 3, S, S) float32 in [0, 1].

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> lefts, rights = ([images.image(i) for i in rows] for rows in ((0, 0), (1, 2)))
        >>> pairs = Pairs(sc.SiameseNet(image_size=96), lefts, rights)
        >>> len(pairs), pairs.pixels.shape, pairs.similarity.shape
        (2, torch.Size([3, 3, 96, 96]), torch.Size([2]))
    """

    def __init__(
        self, net: Any, lefts: Sequence[Image.Image], rights: Sequence[Image.Image]
    ) -> None:
        if len(lefts) != len(rights) or not lefts:
            raise ExplanationError(
                f"Pairs need as many first as second images, at least one; {len(lefts)} and "
                f"{len(rights)} were given."
            )
        self.seeing = as_explainable(net)
        # The same picture twice is looked at once: it costs less, and rounding, which depends on
        # the place in a batch, cannot pass for a difference.
        places: dict[tuple, int] = {}
        keys = [(image.size, image.tobytes()) for image in (*lefts, *rights)]
        order = torch.tensor([places.setdefault(key, len(places)) for key in keys])
        self.first, self.second = order.chunk(2)
        distinct = [Image.frombytes("RGB", *key) for key in places]
        self.pixels = squares(distinct, self.seeing.image_size)

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def seen(self) -> Seen:
        """The distinct pictures after one look, with feature maps and embeddings."""
        return self.seeing.look(self.pixels)

    @cached_property
    def compared(self) -> Compared:
        """Each pair's dissimilarity, and its gradients with respect to both embeddings.

        Raises:
            ExplanationError: if the network gives no finite dissimilarity.
        """
        e = self.seen.embedding
        found = self.seeing.compare(e[self.first], e[self.second])
        if not torch.isfinite(found.dissimilarity).all():
            raise ExplanationError(
                "The network gives no finite dissimilarity; its weights are damaged. Load or "
                "train it again."
            )
        return found

    @property
    def similarity(self) -> Tensor:
        """1 − y of each pair, (B,) float64; the score that all explainers explain."""
        return 1 - self.compared.dissimilarity

    @property
    def one_sided(self) -> tuple[Tensor, Tensor]:
        """Every picture of every pair and its partner, as rows and partners, (2B,) each.

        First all first pictures, then all second ones; `two_sided` puts maps back into pairs.
        """
        both = self.first, self.second
        return torch.cat(both), torch.cat(both[::-1])

    @staticmethod
    def two_sided(maps: Tensor) -> Tensor:
        """Maps in the order of `one_sided` → pairs: (2B, h, w) → (B, 2, h, w)."""
        return torch.stack(maps.chunk(2), dim=1)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings of changed pictures (m, 3, S, S) in [0, 1]: (m, E) float64, no gradient."""
        return self.seeing.embed_all(pixels).cpu().double()

    def score(self, e1: Tensor, e2: Tensor) -> Tensor:
        """Similarity of pairs of embeddings, (m, E) twice → (m,)."""
        with torch.inference_mode():
            return self.seeing.similarity(e1, e2)

    def score_changed(self, row: int, e: Tensor) -> Tensor:
        """Similarity when one picture is changed and its partner stays as it is.

        The changed one keeps its place, first or second: a comparison need not be symmetric.

        Args:
            row: Which picture of which pair, as in `one_sided`.
            e: Embeddings of the changed picture, (m, E).

        Returns:
            (m,).
        """
        partner = self.seen.embedding[self.one_sided[1][row]].expand_as(e)
        return self.score(e, partner) if row < len(self) else self.score(partner, e)

    def seeds(self, seed: int) -> list[int]:
        """A seed for each picture of `one_sided`: the same picture gets the same in any batch."""
        rows, partners = (side.tolist() for side in self.one_sided)
        told = [hashlib.sha256(p.numpy().tobytes()).hexdigest() for p in self.pixels]
        keys = (f"{seed} {told[i]} {told[j]}" for i, j in zip(rows, partners, strict=True))
        return [int(hashlib.sha256(key.encode()).hexdigest()[:15], 16) for key in keys]


class Explainer(ABC):
    """One way to explain pairs; each is one file of `siamcam_lib.explainers`, named as the file.

    What a method cannot do is declared in its attributes, not discovered by its users.

    Attributes:
        title: Its name in tables.
        source: Where it comes from: authors, year, DOI.
        cost: One of `COSTS`.
        signed: Whether its maps can speak against similarity too; those that cannot are never
            negative.
        paired: Whether the map of a picture depends on the picture's partner.
        needs: What `fit` must see first: ``""`` nothing, ``"images"``, or ``"labels"`` too.
        random: Whether the seed matters.
        limits: What it cannot do or is known to do wrong, in a sentence for the reader.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    signed: ClassVar[bool] = True
    paired: ClassVar[bool] = True
    needs: ClassVar[str] = ""
    random: ClassVar[bool] = False
    limits: ClassVar[str] = ""

    fitted: bool = False

    @property
    def name(self) -> str:
        """As in `siamcam_lib.explainers.names`: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}; {self.cost})"

    def fit(self, net: Any, images: ImageSet, *, seed: int = 0, progress: bool = True) -> Explainer:
        """Learn what the method needs from training pictures; most need nothing.

        Args:
            net: The network, as in `sc.explain`.
            images: Training pictures only, with labels where `needs` says so.
            seed: Of whatever is drawn.
            progress: Show progress.

        Returns:
            The explainer itself.
        """
        return self

    @abstractmethod
    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        """Signed maps of both pictures of each pair; positive speaks for similarity.

        Args:
            pairs: B pairs.
            seed: Of whatever is drawn; the same seed gives the same maps, in any batch.
            progress: Show progress, where it takes long.

        Returns:
            (B, 2, h, w), finite, on the CPU, at feature or pixel resolution.
        """

    def __call__(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        """`maps`, checked.

        Returns:
            (B, 2, h, w) float32.

        Raises:
            ExplanationError: if the method must be fitted first, or gives what is no finite map of
                two pictures a pair.
        """
        if self.needs and not self.fitted:
            raise ExplanationError(
                f"{self.title} learns from {'labelled ' * (self.needs == 'labels')}training images "
                f"before it can explain: explainer = sc.explainers.get({self.name!r}).fit(net, "
                "split.train), and then method=explainer."
            )
        found = self.maps(pairs, seed=seed, progress=progress)
        if found.ndim != 4 or found.shape[:2] != (len(pairs), 2):
            raise ExplanationError(
                f"{self.title} gave maps {tuple(found.shape)} for {len(pairs)} pairs; expected "
                f"({len(pairs)}, 2, h, w)."
            )
        if not torch.isfinite(found).all():
            raise ExplanationError(f"{self.title} gave a map that is not finite.")
        return found.float()


class ClosedForm(Explainer):
    """Maps along a direction of embedding space: one look at each picture and nothing else.

    A subclass named as one of `CLOSED_FORMS` needs no code; another one overrides `maps`, and takes
    them from `pairs.seen.along`.
    """

    cost = "closed form"

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        e = pairs.seen.embedding
        ends = e[pairs.first], e[pairs.second]
        v1, v2 = directions(self.name, pairs.compared, *ends, pairs.seeing.unit)
        return torch.stack(
            [pairs.seen.along(pairs.first, v1), pairs.seen.along(pairs.second, v2)], dim=1
        )


def directions(
    method: str, compared: Compared, e1: Tensor, e2: Tensor, unit: bool
) -> tuple[Tensor, Tensor]:
    """Along which directions of embedding space the maps of both images run: twice (m, E).

    Args:
        method: One of `CLOSED_FORMS`.
        compared: Of the same embeddings.
        e1: (m, E).
        e2: (m, E).
        unit: Whether embeddings are compared at unit length.
    """
    if method == "gradcam":
        return compared.v1, compared.v2
    found = []
    for one, partner in ((e1, e2), (e2, e1)):
        own, other = gradcam.coefficients(method, gradcam.relation(one, partner, unit), unit)
        found.append(own[:, None] * one + other[:, None] * partner)
    return found[0], found[1]


def check_closed_form(method: str) -> None:
    """Raise `ExplanationError`, listing those known, if `method` is no closed form."""
    if method not in CLOSED_FORMS:
        raise ExplanationError(
            f"No closed form is called {method!r}; known are {', '.join(CLOSED_FORMS)}. Other "
            "methods look at the pictures again: sc.explain(net, a, b, method=...)."
        )
