"""XGrad-CAM: channels weighed by their gradient times their share of the activation."""

from torch import Tensor
from torchcam import methods

from siamcam_lib.cams import GradientCAM, through


class XGradCAM(GradientCAM):
    r"""Channel weights :math:`\sum_p G_k(p) A_k(p) / \sum_p A_k(p)`, by torchcam.

    Behind a head that pools, G is the same at every place, and this is Grad-CAM.
    """

    title = "XGrad-CAM"
    source = "Fu et al. 2020, arXiv:2008.02312"
    limits = (
        "Behind a head that pools it is Grad-CAM, blank maps included. Where a feature map can be "
        "negative it divides by sums that may be nearly zero."
    )

    def one_way(self, maps: Tensor, gradient: Tensor) -> Tensor:  # noqa: D102
        return through(methods.XGradCAM, maps, gradient)
