"""Integrated gradients: the slope of the similarity, added up along the way from a blank pair."""

import torch
from captum.attr import IntegratedGradients as Captum
from torch import Tensor
from tqdm.auto import tqdm

from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import AT_ONCE, check_count, check_fill, fill


class IntegratedGradients(Explainer):
    """Both pictures fade in together from their baselines, by captum; colours are added up.

    The two maps of a pair add up to its similarity less that of its baselines.

    Args:
        steps: At how many points of the way the slope is taken (Gauss-Legendre).
        baseline: Where the way begins; one of `siamcam_lib.perturbing.FILLS`.
    """

    title = "integrated gradients"
    source = "Sundararajan et al. 2017, arXiv:1703.01365"
    cost = "gradients"
    limits = (
        "It depends on the baseline: what looks like it gets nothing. Two black pictures are "
        "equal, so what is added up is how the pair lost similarity. Maps are grainy."
    )

    def __init__(self, steps: int = 32, baseline: str = "black") -> None:
        self.steps, self.baseline = check_count("steps", steps), check_fill(baseline)

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        seeing = pairs.seeing

        def similarity(a: Tensor, b: Tensor) -> Tensor:
            e1, e2 = seeing.embed(torch.cat([a, b])).cpu().double().chunk(2)
            return seeing.similarity(e1, e2)

        found = []
        bar = tqdm(range(len(pairs)), self.title, disable=not progress, leave=False, unit="pair")
        # A graph that began outside inference mode must be followed there too.
        with torch.inference_mode(False), torch.enable_grad():
            pixels = pairs.pixels.clone()
            blank = fill(pixels, self.baseline)
            for k in bar:  # one by one: nothing depends on what else is in the batch
                ends = pairs.first[k : k + 1], pairs.second[k : k + 1]
                parts = Captum(similarity).attribute(
                    tuple(pixels[i] for i in ends),
                    tuple(blank[i] for i in ends),
                    n_steps=self.steps,
                    internal_batch_size=AT_ONCE // 2,
                )
                maps = torch.stack([part[0].sum(dim=0).detach() for part in parts])
                # Of equal pictures the way is level, and any slope is rounding.
                found.append(maps * (ends[0] != ends[1]))
        return torch.stack(found)
