"""Grad-CAM++: positive gradients only, weighed by how the score would curve."""

import torch
from torch import Tensor

from siamcam_lib.cams import GradientCAM


class GradCAMPlusPlus(GradientCAM):
    r"""The map :math:`\mathrm{ReLU} \sum_k w_k A_k(p)` with the weights of equations 5 and 19.

    .. math::

        w_k = \sum_p \alpha_k(p)\,\mathrm{ReLU}(G_k(p)), \quad
        \alpha_k(p) = \frac{1}{2 + G_k(p) \sum_q A_k(q)}

    where :math:`G_k(p) > 0`. By hand: torchcam 0.5 leaves the division of α out, and
    pytorch-grad-cam adds to the denominator a constant that outweighs the gradients of a pair.
    """

    title = "Grad-CAM++"
    source = "Chattopadhay et al. 2018, arXiv:1710.11063"
    limits = (
        "A similarity in [0, 1] curves little: α is nearly ½, and behind a head that pools the "
        "difference of its two maps nearly Grad-CAM, blank maps included. It expects feature maps "
        "that are not negative."
    )

    def one_way(self, maps: Tensor, gradient: Tensor) -> Tensor:  # noqa: D102
        curve = 2 + gradient * maps.sum(dim=(2, 3), keepdim=True)
        weights = torch.where(gradient > 0, gradient / curve, 0).sum(dim=(2, 3))
        return torch.einsum("mk,mkhw->mhw", weights, maps).relu()
