"""What a picture has of its partner, less what it has of everybody."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from siamcam_lib.datasets import ImageSet
from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.typical import Typical, own_length, typical


class Centred(Explainer):
    r"""The shared map, with embeddings and places counted from their means over training pictures.

    :math:`S'_1(p) = \langle P_1(p) - \bar P,\ e_2 - \bar e \rangle`, everything at unit length
    where the network compares so. Positive where a place speaks for this partner more than for the
    average picture. Two equal pictures do not get a blank map.

    Example:
        >>> import siamcam_lib as sc
        >>> images, net = sc.datasets.load("scenes/flowers", n=10), sc.SiameseNet(image_size=96)
        >>> centred = Centred().fit(net, images, progress=False)
        >>> sc.explain(net, images.image(0), images.image(1), method=centred).method
        'centred'
    """

    title = "shared, centred"
    source = "follows from the identity in chapter 4"
    cost = "closed form"
    needs = "images"
    limits = "What is shared with most training pictures is taken for nothing."

    average: Typical

    def fit(  # noqa: D102
        self, net: Any, images: ImageSet, *, seed: int = 0, progress: bool = True
    ) -> Centred:
        self.average, self.fitted = typical(net, images, progress=progress), True
        return self

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        self.average.check(pairs.seeing)
        rows, partners = pairs.one_sided
        return pairs.two_sided(centred(pairs, self.average, rows, partners))


def centred(pairs: Pairs, average: Typical, rows: Tensor, partners: Tensor) -> Tensor:
    """Centred shared maps of the pictures `rows` with their `partners`: (m, h, w) float64."""
    e = pairs.seen.embedding
    length = own_length(pairs.seeing, e)
    v = e[partners] / length[partners, None] - average.embedding
    found = pairs.seen.along(rows, v / length[rows, None])
    places = found.shape[1] * found.shape[2]
    return found - (v @ average.place / places)[:, None, None]
