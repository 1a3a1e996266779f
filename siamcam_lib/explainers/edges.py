"""Edges: what looks like an explanation without any network. A control."""

import torch
from skimage.color import rgb2gray
from skimage.filters import sobel
from torch import Tensor

from siamcam_lib.explaining import Explainer, Pairs


class Edges(Explainer):
    """How fast the brightness changes at each pixel, by scikit-image's Sobel filter."""

    title = "edge detector"
    source = "a control, as in Adebayo et al. 2018, arXiv:1810.03292"
    cost = "control"
    signed = False
    paired = False
    limits = "It looks at neither partner nor network: what scores no better explains no pair."

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        grey = rgb2gray(pairs.pixels.permute(0, 2, 3, 1).numpy())
        maps = torch.stack([torch.from_numpy(sobel(picture)) for picture in grey])
        return torch.stack([maps[pairs.first], maps[pairs.second]], dim=1)
