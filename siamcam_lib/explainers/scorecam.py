"""Score-CAM: channels weighed by the score of the picture seen through them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchcam import methods
from tqdm.auto import tqdm

from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import AT_ONCE, check_count


class ScoreCAM(Explainer):
    r"""The map :math:`\sum_k (w_k - \bar w_k) A_k(p)`, by torchcam.

    A channel, stretched to [0, 1], is laid over the picture and darkens it; w is the softmax over
    channels of the change of the similarity, :math:`\bar w` that of the dissimilarity. Where a
    feature map is not negative, this is the difference of the two maps.

    Args:
        channels: How many channels are tried, those that vary most over the picture.
    """

    title = "Score-CAM"
    source = "Wang et al. 2020, arXiv:1910.01279"
    cost = "perturbations"
    limits = (
        "A pass through the network for every channel; only the 64 that vary most are tried. "
        "Darkened pictures are none the network knows. Scores in [0, 1] make all weights alike."
    )

    def __init__(self, channels: int = 64) -> None:
        self.channels = check_count("channels", channels)

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        rows, _ = pairs.one_sided
        maps = pairs.seen.maps.double()
        kept = maps.flatten(2).std(dim=2).topk(min(self.channels, maps.shape[1])).indices
        maps = maps.take_along_dim(kept[:, :, None, None], dim=1)[rows]
        told = tqdm(
            total=len(rows) * (maps.shape[1] + 2),
            desc=self.title,
            unit="picture",
            disable=not progress,
            leave=False,
        )
        network = _Masked(pairs, maps, told)

        def of(row: int) -> Callable[[Tensor], Tensor]:
            return lambda e: pairs.score_changed(row, e[None])

        targets = [of(row) for row in range(len(rows))]
        with told, torch.no_grad(), _BothWays(network, "features", batch_size=AT_ONCE) as cam:
            network(pairs.pixels[rows])
            [found] = cam(targets=targets, normalized=False)
        return pairs.two_sided(found)


class _Masked(nn.Module):
    """Pictures to embeddings, past a layer that holds the channels to be tried."""

    def __init__(self, pairs: Pairs, maps: Tensor, told: tqdm) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.pairs, self.chosen, self.told = pairs, maps, told

    def forward(self, pixels: Tensor) -> Tensor:
        self.features(self.chosen)
        self.told.update(len(pixels))
        return self.pairs.embed(pixels)


class _BothWays(methods.ScoreCAM):
    """Weights of the similarity less those of the dissimilarity, from the same passes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._relu = False

    def _get_weights(self, *args: Any, **options: Any) -> list[Tensor]:
        [similar] = super()._get_weights(*args, **options)  # log of it: the change, but for a shift
        return [similar - torch.softmax(-similar.log(), dim=-1)]
