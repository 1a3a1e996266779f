"""Which place of the partner answers a place best."""

import torch
from torch import Tensor

from siamcam_lib.explaining import Explainer, Pairs


class PointToPoint(Explainer):
    r"""The largest product of a place with any place of the partner.

    .. math:: M_1(p) = \max_q \max(0, R(p, q)), \quad R(p, q) = \langle P_1(p), P_2(q) \rangle

    Where embeddings are compared at unit length, :math:`P/\lVert e \rVert` stands for P. The paper
    shows R itself, one place at a time; its maximum is our way to make a map of it.

    Args:
        squared: Square the map: the order of places stays, weak ones fade.
    """

    title = "point to point"
    source = "Zhu et al. 2021, doi:10.1109/TIP.2021.3107214"
    cost = "closed form"
    signed = False
    limits = (
        "It finds no evidence against similarity. The maximum over the partner's places is our "
        "reading. A head that does more than pool and project is taken at its gradient, at the "
        "cost of a backward pass through it for every number of an embedding."
    )

    def __init__(self, squared: bool = False) -> None:
        self.squared = squared

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        seen = pairs.seen.project()
        places = seen.maps.flatten(2)  # P, (n, E, hw)
        if pairs.seeing.unit:
            length = torch.linalg.vector_norm(seen.embedding, dim=1)
            places = places / torch.where(length == 0, 1, length)[:, None, None]
        found = []
        for i, j in zip(pairs.first, pairs.second, strict=True):
            answers = (places[i].T @ places[j]).relu()  # R, (hw, hw)
            found.append(torch.stack([answers.amax(dim=1), answers.amax(dim=0)]))
        maps = torch.stack(found).unflatten(2, seen.maps.shape[2:])
        return maps.square() if self.squared else maps
