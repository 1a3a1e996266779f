"""CorrRISE: where a random mask keeps the picture, does the similarity rise or fall with it?"""

import torch
from torch import Tensor
from tqdm.auto import tqdm

from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import check_count, check_fill, check_share, embed_covered, fill
from siamcam_lib.perturbing import random_masks as draw

ROUNDING = 1e-6  # scores that differ by less, relative to their size, are the same


class CorrRISE(Explainer):
    """Pearson's correlation of mask and similarity at every pixel; one picture is masked at a time.

    Args:
        masks: How many.
        cells: Cells in a row of a mask's grid.
        keep: Probability that a cell is kept.
        fill: What hides; one of `siamcam_lib.perturbing.FILLS`.
    """

    title = "CorrRISE"
    source = "Lu, Xu & Ebrahimi 2024 (WACV), arXiv:2305.08546"
    cost = "perturbations"
    random = True
    limits = (
        "Noise of about 1/√masks at every pixel. A correlation says how surely, not how much a "
        "place matters. Half-hidden pictures are none the network knows."
    )

    def __init__(
        self, masks: int = 500, cells: int = 7, keep: float = 0.5, fill: str = "black"
    ) -> None:
        self.masks, self.cells = check_count("masks", masks), check_count("cells", cells)
        self.keep, self.fill = check_share("keep", keep), check_fill(fill)

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        rows, _ = pairs.one_sided
        filling = fill(pairs.pixels, self.fill)
        bar = tqdm(
            total=len(rows) * self.masks,
            desc=self.title,
            unit="mask",
            disable=not progress,
            leave=False,
        )

        def embed(pixels: Tensor) -> Tensor:
            bar.update(len(pixels))
            return pairs.embed(pixels)

        found = []
        with bar:
            for row, (i, own) in enumerate(zip(rows, pairs.seeds(seed), strict=True)):
                masks = draw(
                    self.masks,
                    pairs.pixels.shape[-1],
                    cells=self.cells,
                    keep=self.keep,
                    generator=torch.Generator().manual_seed(own),
                )
                e = embed_covered(embed, pairs.pixels[i], masks, filling[i])
                found.append(correlation(masks, pairs.score_changed(row, e)))
        return pairs.two_sided(torch.stack(found))


def correlation(masks: Tensor, scores: Tensor) -> Tensor:
    """Pearson's correlation of m values of each pixel with m scores; 0 where either is constant.

    Args:
        masks: (m, S, S).
        scores: (m,).

    Returns:
        (S, S) in [−1, 1].

    Example:
        >>> masks = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]], [[0.0, 1.0]]])
        >>> correlation(masks, torch.tensor([0.2, 0.8, 0.2])).tolist()
        [[1.0, 0.0]]
    """
    if scores.max() - scores.min() <= ROUNDING * scores.abs().max():
        return torch.zeros_like(masks[0])
    apart = scores.double() - scores.double().mean()
    apart = (apart / apart.std(correction=0)).to(masks.dtype)
    spread = masks.std(dim=0, correction=0)
    together = torch.einsum("mhw,m->hw", masks, apart) / len(masks)  # a mask's mean cancels
    return torch.where(spread > 0, together / spread, 0).clamp(-1, 1)
