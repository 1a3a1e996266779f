"""Occlusion: how much similarity is lost when a window hides a part of one picture."""

import torch
from captum.attr import Occlusion as Captum
from torch import Tensor
from tqdm.auto import tqdm

from siamcam_lib.errors import ExplanationError
from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import AT_ONCE, check_fill, check_share, fill


class Occlusion(Explainer):
    """A window slides over one picture, its partner stays; by captum.

    Each place gets the mean loss of similarity of all windows that hid it.

    Args:
        window: Side of the window as a share of the picture's.
        stride: How far it moves, as a share of the picture's side; at most `window`.
        fill: What the window shows; one of `siamcam_lib.perturbing.FILLS`.
    """

    title = "occlusion"
    source = "Zeiler & Fergus 2014, doi:10.1007/978-3-319-10590-1_53, with the similarity as score"
    cost = "perturbations"
    limits = (
        "It sees only what one window hides: of two parts that each suffice, neither. The result "
        "depends on window and fill; a filled window is a picture the network does not know."
    )

    def __init__(self, window: float = 0.2, stride: float = 0.1, fill: str = "mean") -> None:
        self.window, self.stride = check_share("window", window), check_share("stride", stride)
        self.fill = check_fill(fill)
        if stride > window:
            raise ExplanationError(
                f"A stride of {stride} is wider than the window of {window}: some places would "
                "never be hidden."
            )

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        side = pairs.pixels.shape[-1]
        window, stride = (max(1, round(share * side)) for share in (self.window, self.stride))
        filling = fill(pairs.pixels, self.fill)
        found = []
        rows, _ = pairs.one_sided
        bar = tqdm(rows, self.title, disable=not progress, leave=False, unit="picture")
        for row, i in enumerate(bar):

            def similarity(pixels: Tensor, row: int = row) -> Tensor:
                return pairs.score_changed(row, pairs.embed(pixels))

            loss = Captum(similarity).attribute(
                pairs.pixels[i : i + 1],
                sliding_window_shapes=(3, window, window),
                strides=(3, stride, stride),
                baselines=filling[i : i + 1],
                perturbations_per_eval=AT_ONCE,
            )
            found.append(loss[0, 0])  # a window hides all three colours alike
        return pairs.two_sided(torch.stack(found))
