"""Feature activation map: what each channel adds to the cosine of the pooled feature maps."""

import torch
from torch import Tensor

from siamcam_lib.explaining import Explainer, Pairs


class FeatureActivationMap(Explainer):
    r"""Channels weighed by their part of the cosine, for both pictures alike.

    .. math:: M_i(p) = \sum_k w_k A_{i,k}(p), \quad
        w_k = \frac{g_{1,k}\, g_{2,k}}{\lVert g_1 \rVert \lVert g_2 \rVert}

    The weights add up to the cosine. The paper scales them once more before they are used; they
    are left as they are here.
    """

    title = "feature activation map"
    source = "Liao, Gao & Zhang 2023, arXiv:2307.05017"
    cost = "closed form"
    limits = (
        "It knows nothing of what comes after the feature map: a trained head changes nothing. "
        "Behind a ReLU it is never negative, and shows nothing that speaks against similarity."
    )

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        maps = pairs.seen.maps.double()
        unit = torch.nn.functional.normalize(maps.mean(dim=(2, 3)), dim=1)
        weights = unit[pairs.first] * unit[pairs.second]  # (B, K)
        sides = torch.stack([maps[pairs.first], maps[pairs.second]], dim=1)
        return torch.einsum("bk,bikhw->bihw", weights, sides)
