"""Random maps: what any measure must tell from an explanation. A control."""

import torch
from torch import Tensor

from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import check_count


class Random(Explainer):
    """Normal noise on a coarse grid, smooth once it is stretched over the picture.

    Args:
        cells: Cells in a row of the grid; 7 is as coarse as most networks' maps at 224 pixels.
    """

    title = "random map"
    source = "a control"
    cost = "control"
    random = True
    limits = "It looks at neither picture nor network: what scores no better explains nothing."

    def __init__(self, cells: int = 7) -> None:
        self.cells = check_count("cells", cells)

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        size = self.cells, self.cells
        draws = [torch.Generator().manual_seed(own) for own in pairs.seeds(seed)]
        return pairs.two_sided(torch.stack([torch.randn(size, generator=draw) for draw in draws]))
