"""Which places speak for this partner, seen from afar; where exactly they are, seen from near."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from siamcam_lib.datasets import ImageSet
from siamcam_lib.embedder import as_explainable
from siamcam_lib.explainers.centred import centred
from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import check_count
from siamcam_lib.typical import Typical, compared, typical

AT_ONCE = 16  # enlarged pictures that are looked at together


class TwoScale(Explainer):
    r"""The centred shared map, sharpened by a second look at the same picture enlarged.

    Enlarged, a picture gives a map with more places, each of which sees less: it tells better
    where something is, and worse what it is. So the two looks share the work.

    .. math:: M_1(p) = S'_1(p)\; \lVert P^{+}_1(p) - \bar P \rVert^{2}

    :math:`S'_1` is the centred shared map of the picture as it is (see
    `siamcam_lib.explainers.centred`), enlarged bilinearly; it alone gives the sign.
    :math:`P^{+}_1` is the projected map of the enlarged picture: how much each of its places
    matters to an embedding at all.

    Args:
        scale: How many times the picture is enlarged, in both directions; the second look costs
            its square.
        average: That of an explainer fitted on the same network; nothing is left to fit then.

    Example:
        >>> import siamcam_lib as sc
        >>> images, net = sc.datasets.load("scenes/flowers", n=10), sc.SiameseNet(image_size=96)
        >>> sharp = TwoScale().fit(net, images, progress=False)
        >>> sc.explain(net, images.image(0), images.image(1), method=sharp).raw[0].shape
        (6, 6)
    """

    title = "two scales"
    source = "this book; follows from the identity in chapter 4"
    cost = "closed form"
    needs = "images"
    limits = (
        "The network must take pictures of twice the size, and what it says of them is trusted for "
        "places, not for kinds."
    )

    def __init__(self, scale: int = 2, average: Typical | None = None) -> None:
        self.scale = check_count("scale", scale)
        self.given = self.average = average
        self.fitted = average is not None

    def fit(  # noqa: D102
        self, net: Any, images: ImageSet, *, seed: int = 0, progress: bool = True
    ) -> TwoScale:
        self.average = self.given or typical(net, images, progress=progress)
        self.average.check(as_explainable(net))
        self.fitted = True
        return self

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        average = self.average
        assert average is not None  # it was fitted
        average.check(pairs.seeing)
        rows, partners = pairs.one_sided
        matters = self._matters(pairs, average)[rows]
        coarse = centred(pairs, average, rows, partners)[:, None]
        size = matters.shape[1:]
        sign = interpolate(coarse, size=size, mode="bilinear", align_corners=False)[:, 0]
        return pairs.two_sided(sign * matters)

    def _matters(self, pairs: Pairs, average: Typical) -> Tensor:
        """How much each place of each enlarged picture matters: (n, 2h, 2w)."""
        found = []
        for pixels in pairs.pixels.split(AT_ONCE):
            large = interpolate(pixels, scale_factor=self.scale, mode="bicubic").clamp(0, 1)
            _, maps = compared(pairs.seeing, pairs.seeing.look(large))
            places = maps.shape[2] * maps.shape[3]
            far = maps * places - average.place[:, None, None].float()
            found.append((far**2).sum(dim=1).double())
        return torch.cat(found)
