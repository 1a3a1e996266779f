"""`explain`: why two photographs are judged alike or not, as a heatmap on each of them.

Taught in chapter 4 (Grad-CAM maths) and in the case studies. Factual maps show the evidence for
the decision that was taken, counterfactual maps the evidence for the other one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siamcam_lib import gradcam
from siamcam_lib.backbones import evaluating
from siamcam_lib.datasets.images import as_image
from siamcam_lib.errors import ExplanationError
from siamcam_lib.files import whole_file
from siamcam_lib.model import SiameseNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Maps = tuple[np.ndarray, np.ndarray]
METHODS = ("gradcam",)
POLARITIES = ("decision", "paper")


@dataclass(frozen=True)
class Explanation:
    """One pair, judged and explained.

    Attributes:
        images: The two pictures, RGB.
        dissimilarity: y, in (0, 1).
        threshold: From which y on the pair is judged dissimilar.
        raw: Signed maps for a and b at feature resolution, float32 (h, w) each; positive speaks
            for similarity.
        factual: Heatmaps for a and b, float32, not negative, at each image's own resolution
            (H, W).
        counterfactual: The same for the decision that was not taken.
        method: How the maps were made.
        polarity: ``"decision"``: factual is the evidence for the decision taken. ``"paper"``:
            factual is the evidence for dissimilarity, whatever was decided.
    """

    images: tuple[Image.Image, Image.Image]
    dissimilarity: float
    threshold: float
    raw: Maps
    factual: Maps
    counterfactual: Maps
    method: str
    polarity: str

    @property
    def similarity(self) -> float:
        """1 − y, in (0, 1)."""
        return 1 - self.dissimilarity

    @property
    def decision(self) -> str:
        """``"similar"`` or ``"dissimilar"``."""
        return "dissimilar" if self.dissimilarity >= self.threshold else "similar"

    @property
    def blank(self) -> dict[str, tuple[bool, bool]]:
        """For both kinds of heatmap: whether the maps of a and b are zero everywhere."""
        kinds = {"factual": self.factual, "counterfactual": self.counterfactual}
        return {name: (not a.any(), not b.any()) for name, (a, b) in kinds.items()}

    def __repr__(self) -> str:
        return (
            f"Explanation({self.decision}: similarity {self.similarity:.3f}, "
            f"threshold {1 - self.threshold:.3f}, {self.method})"
        )

    def plot(self, **options: Any) -> Figure:
        """Both pictures with both heatmaps; see `siamcam_lib.plots.explanation`."""
        from siamcam_lib import plots  # a view, above this module: imported when asked for

        return plots.explanation(self, **options)

    def save(self, folder: str | Path) -> Path:
        """Write maps (``maps.npz``), a picture (``explanation.png``) and ``scores.json``.

        Each file appears whole or not at all.
        """
        import matplotlib.pyplot as plt

        folder = Path(folder)
        with whole_file(folder / "maps.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                **{
                    f"{kind}_{side}": getattr(self, kind)[i]
                    for kind in ("raw", "factual", "counterfactual")
                    for i, side in enumerate("ab")
                },
            )
        figure = self.plot()
        with whole_file(folder / "explanation.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        plt.close(figure)
        record = {
            "dissimilarity": self.dissimilarity,
            "similarity": self.similarity,
            "decision": self.decision,
            "threshold": self.threshold,
            "method": self.method,
            "polarity": self.polarity,
            "blank": self.blank,
            "versions": {"siamcam_lib": version("siamcam_lib"), "torch": torch.__version__},
        }
        with whole_file(folder / "scores.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return folder


def explain(
    net: SiameseNet,
    a: Any,
    b: Any,
    *,
    method: str = "gradcam",
    polarity: str = "decision",
    threshold: float | None = None,
) -> Explanation | list[Explanation]:
    """Judge and explain a pair of images, or many pairs at once.

    The network is used in evaluation mode and left as it was. Each image goes through the
    backbone once; nothing is differentiated.

    Args:
        net: A trained network.
        a: A path, PIL image, array (H, W, 3) or tensor (3, H, W); or a list or tensor
            (B, 3, H, W) of them.
        b: Its partner or partners; sizes may differ.
        method: One of `METHODS`.
        polarity: One of `POLARITIES`; see `Explanation`.
        threshold: Instead of the network's own; in (0, 1).

    Returns:
        One `Explanation` for one pair, a list for a batch.

    Raises:
        ExplanationError: for an unknown method or polarity, a threshold outside (0, 1), an empty
            batch or batches of different lengths.
        ImageError: where an input is no image.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> ex = explain(sc.SiameseNet(image_size=96), images.image(0), images.image(1))
        >>> ex.factual[0].shape == images.image(0).size[::-1]
        True
    """
    if not isinstance(net, SiameseNet):
        raise ExplanationError(
            f"The first argument is the network, a SiameseNet, not {type(net).__name__}; "
            "SiameseNet.load(path) reads one from a file."
        )
    for name, value, known in (("method", method, METHODS), ("polarity", polarity, POLARITIES)):
        if value not in known:
            raise ExplanationError(f"No {name} is called {value!r}; known are {', '.join(known)}.")
    if threshold is not None and not (isinstance(threshold, Real) and 0 < threshold < 1):
        raise ExplanationError(
            f"A threshold lies strictly between 0 and 1, not at {threshold!r}; it is compared "
            "with the dissimilarity."
        )
    single = not _is_batch(a) and not _is_batch(b)
    lefts, rights = ([x] if not _is_batch(x) else list(x) for x in (a, b))
    if len(lefts) != len(rights) or not lefts:
        raise ExplanationError(
            f"Pairs need as many first as second images, at least one; {len(lefts)} and "
            f"{len(rights)} were given."
        )
    lefts, rights = [as_image(x) for x in lefts], [as_image(x) for x in rights]
    found = _explain_pairs(net, lefts, rights, polarity, threshold or net.threshold)
    return found[0] if single else found


def _is_batch(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 4
    one = str | bytes | bytearray | memoryview
    return isinstance(value, Sequence) and not isinstance(value, one)


def _explain_pairs(
    net: SiameseNet,
    lefts: list[Image.Image],
    rights: list[Image.Image],
    polarity: str,
    threshold: float,
) -> list[Explanation]:
    # The same picture twice is looked at once: it costs less, and rounding, which depends on the
    # place in a batch, cannot pass for a difference.
    places: dict[tuple, int] = {}
    keys = [(image.size, image.tobytes()) for image in (*lefts, *rights)]
    where = torch.tensor([places.setdefault(key, len(places)) for key in keys])
    distinct = [Image.frombytes("RGB", *key) for key in places]
    with evaluating(net), torch.inference_mode():
        batch = net.to_tensor(distinct).to(net.device)  # (at most 2B, 3, S, S)
        seen = gradcam.project(net, net.feature_maps(batch))
        first, second = (
            gradcam.Projected(seen.maps[half], seen.embedding[half])
            for half in where.to(net.device).chunk(2)
        )
        scores = net.dissimilarity(gradcam.distance(net, first, second)).cpu()
        raws = [maps.float().cpu() for maps in gradcam.pair_maps(net, first, second)]
    if not torch.isfinite(scores).all():
        raise ExplanationError(
            "The network gives no finite dissimilarity; its weights are damaged. Load or train "
            "it again."
        )
    found = []
    for left, right, y, raw_a, raw_b in zip(lefts, rights, scores.tolist(), *raws, strict=True):
        full = [stretch(raw, image) for raw, image in ((raw_a, left), (raw_b, right))]
        for_similar = tuple(np.maximum(m, 0) for m in full)
        for_dissimilar = tuple(np.maximum(-m, 0) for m in full)
        swap = polarity == "paper" or y >= threshold
        factual, counter = (
            (for_dissimilar, for_similar) if swap else (for_similar, for_dissimilar)
        )
        raw = (raw_a.numpy(), raw_b.numpy())
        found.append(
            Explanation(
                (left, right), y, threshold, raw, factual, counter, "gradcam", polarity
            )
        )
    return found


def stretch(raw: Tensor, image: Image.Image) -> np.ndarray:
    """A raw map (h, w) at the image's resolution (H, W): bilinear, before any ReLU."""
    size = (image.height, image.width)
    full = torch.nn.functional.interpolate(
        raw[None, None], size=size, mode="bilinear", align_corners=False
    )
    return full[0, 0].numpy()
