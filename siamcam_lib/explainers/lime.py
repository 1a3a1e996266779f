"""LIME: hide superpixels of both pictures at random, and fit a line to what the score does."""

from __future__ import annotations

import numpy as np
import torch
from skimage.segmentation import slic
from sklearn.linear_model import Ridge
from torch import Tensor
from tqdm.auto import tqdm

from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.perturbing import check_count, check_fill, embed_covered
from siamcam_lib.perturbing import fill as hiding


class LIME(Explainer):
    """Superpixels of both pictures as one set of features, weighed by a local linear model.

    A superpixel's value is painted over all of its pixels: the map says which pieces matter, not
    where in a piece. A large piece and a small one of equal value look equally strong.

    Ours: looking is dear and comparing is not. Each picture is looked at with `samples` random
    sets of its pieces hidden, once for all pairs it comes in, and every copy of the first picture
    is compared with every copy of the second: samples² scores for 2 · samples looks.

    Args:
        segments: Superpixels a picture, about; `skimage.segmentation.slic` may give fewer.
        samples: Copies of each picture with random pieces hidden; each costs a look.
        fill: What hidden pieces show; one of `siamcam_lib.perturbing.FILLS`.

    Raises:
        ExplanationError: if a setting is wrong.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> ex = sc.explain(
        ...     sc.SiameseNet(image_size=64), images.image(0), images.image(1),
        ...     method=LIME(segments=4, samples=10),
        ... )
        >>> len(np.unique(ex.raw[0])) <= 9
        True
    """

    title = "LIME"
    source = "Ribeiro et al. 2016, doi:10.1145/2939672.2939778"
    cost = "perturbations"
    random = True
    limits = "Hidden pieces make pictures unlike any the network knows; the map varies by the draw."

    def __init__(self, segments: int = 40, samples: int = 100, fill: str = "mean") -> None:
        self.segments = check_count("segments", segments)
        self.samples = check_count("samples", samples)
        self.fill = check_fill(fill)

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        pieces = [superpixels(picture, self.segments) for picture in pairs.pixels]
        painted = hiding(pairs.pixels, self.fill)
        shown, embedded = [], []
        for k in tqdm(
            range(len(pieces)), desc=self.title, unit="image", leave=False, disable=not progress
        ):
            # The same draws for every picture: a copy serves all pairs, in any batch.
            generator = torch.Generator().manual_seed(seed)
            shown.append(self.draw(int(pieces[k].max()) + 1, generator))
            masks = shown[k][:, pieces[k]].float()
            embedded.append(embed_covered(pairs.embed, pairs.pixels[k], masks, painted[k]))
        found = []
        for i, j in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
            sizes = len(shown[i]), len(shown[j])
            scores = pairs.score(*crossed(embedded[i], embedded[j])).view(sizes)
            values = self.values(shown[i], shown[j], scores)
            found += [value[pieces[k]] for value, k in zip(values, (i, j), strict=True)]
        return torch.stack(found).unflatten(0, (-1, 2))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Which of `count` pieces the copies of a picture show: bool (m, count).

        The first copy shows all, the second none; the others come in twos that complement each
        other. Each piece is shown with probability ½.
        """
        half = torch.rand(max(1, self.samples // 2), count, generator=generator) < 0.5
        half[0] = True
        return torch.stack([half, ~half], dim=1).flatten(0, 1)

    def values(self, shown1: Tensor, shown2: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What each superpixel adds to the score.

        Args:
            shown1: Which pieces the copies of the first picture show, bool (m1, s1).
            shown2: The same of the second, bool (m2, s2).
            scores: Of each copy of the first with each of the second, (m1, m2).

        Returns:
            (s1,) and (s2,) float64.
        """
        z1, z2 = crossed(shown1.double(), shown2.double())
        z = torch.cat([z1, z2], dim=1)
        # As in the published code for pictures: d is the cosine distance between what is shown
        # and everything, copies count exp(−d²/2w²) with w = .25, and the ridge is 1.
        d = 1 - z.mean(dim=1).sqrt()
        line = Ridge(alpha=1.0).fit(z, scores.flatten(), torch.exp(-(d**2) / (2 * 0.25**2)))
        return torch.from_numpy(line.coef_).split([shown1.shape[1], shown2.shape[1]])


def superpixels(picture: Tensor, segments: int) -> Tensor:
    """About so many pieces of like colour: (3, S, S) in [0, 1] → (S, S) int64, 0, 1, 2, ….

    Example:
        >>> superpixels(torch.rand(3, 32, 32), 4).shape
        torch.Size([32, 32])
    """
    found = slic(picture.permute(1, 2, 0).numpy(), n_segments=segments, start_label=0)
    return torch.from_numpy(np.unique(found, return_inverse=True)[1]).reshape(found.shape)


def crossed(rows1: Tensor, rows2: Tensor) -> tuple[Tensor, Tensor]:
    """Every row of the first with every row of the second: (m1, …), (m2, …) → (m1·m2, …) twice.

    Example:
        >>> crossed(torch.tensor([1, 2]), torch.tensor([3, 4]))
        (tensor([1, 1, 2, 2]), tensor([3, 4, 3, 4]))
    """
    return (
        rows1.repeat_interleave(len(rows2), dim=0),
        rows2.repeat(len(rows1), *[1] * (rows2.ndim - 1)),
    )
