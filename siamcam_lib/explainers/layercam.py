"""LayerCAM: each place weighed by its own gradient, where that is positive."""

from torch import Tensor
from torchcam import methods

from siamcam_lib.cams import GradientCAM, through


class LayerCAM(GradientCAM):
    r"""The map :math:`\mathrm{ReLU} \sum_k \mathrm{ReLU}(G_k(p)) A_k(p)`, by torchcam.

    That is one score's map; see `siamcam_lib.cams.GradientCAM` for the two together. The paper's
    scaling by a tanh, meant for early layers, is left out.
    """

    title = "LayerCAM"
    source = "Jiang et al. 2021, doi:10.1109/TIP.2021.3089943"
    limits = (
        "The difference of its two maps is the gradient times the activation wherever the feature "
        "map is not negative, and behind a head that pools Grad-CAM, blank maps included."
    )

    def one_way(self, maps: Tensor, gradient: Tensor) -> Tensor:  # noqa: D102
        return through(methods.LayerCAM, maps, gradient)
