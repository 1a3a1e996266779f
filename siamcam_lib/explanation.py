"""`explain`: why two photographs are judged alike or not, as a heatmap on each of them.

Taught in chapter 4 (Grad-CAM maths) and in the case studies. Factual maps show the evidence for
the decision that was taken, counterfactual maps the evidence for the other one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siamcam_lib import explainers
from siamcam_lib.datasets.images import as_image
from siamcam_lib.embedder import as_explainable, check_threshold
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explaining import Explainer, Pairs
from siamcam_lib.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Maps = tuple[np.ndarray, np.ndarray]
AT_ONCE = 16  # pairs looked at together: two images each, feature maps held in memory
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

    images: Sequence[Image.Image]
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
        """Whether the maps of a and b are zero everywhere, for both kinds of heatmap."""
        kinds = {"factual": self.factual, "counterfactual": self.counterfactual}
        return {name: (not a.any(), not b.any()) for name, (a, b) in kinds.items()}

    @property
    def top(self) -> float:
        """The largest value of all four heatmaps, the end of a colour scale they share."""
        return max(float(m.max()) for m in (*self.factual, *self.counterfactual))

    def _repr_png_(self) -> bytes:
        """The figure, wherever a notebook displays the explanation."""
        import matplotlib.pyplot as plt

        figure, buffer = self.plot(), BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
        return buffer.getvalue()

    def __repr__(self) -> str:
        return (
            f"Explanation({self.decision}: dissimilarity {self.dissimilarity:.3f}, "
            f"dissimilar from {self.threshold:.3f} on, {self.method})"
        )

    def plot(self, **options: Any) -> Figure:
        """Both pictures with both heatmaps; see `siamcam_lib.plots.explanation`."""
        from siamcam_lib import plots  # a view, above this module: imported when asked for

        return plots.explanation(self, **options)

    @classmethod
    def open(cls, path: str | Path, a: Any = None, b: Any = None) -> Explanation:
        """Read ``explanation.json``, written by `siamcam explain` or by the explorer in a page.

        Args:
            path: Of the file; `siamcam_lib.record` says what is in it.
            a: The first picture, as in `sc.explain`; needed only to draw the explanation.
            b: The second.

        Raises:
            ExplanationError: if it is no such file, or a picture is not the one that was
                explained.
            ImageError: if a picture cannot be read.
        """
        from siamcam_lib import record  # it makes explanations: imported when asked for

        return record.opened(path, a, b)

    def save(self, folder: str | Path) -> Path:
        """Write what was found into a folder, which is made where it is missing.

        ``maps.npz`` holds the six arrays, ``explanation.png`` the figure, ``factual_a.png`` and
        its three kin one heatmap each, laid over its picture at the picture's own size and on
        one colour scale; ``scores.json`` the rest. Each file appears whole or not at all.

        Raises:
            ExplanationError: if the folder cannot be written.
        """
        import matplotlib.pyplot as plt

        from siamcam_lib import plots

        folder = Path(folder)
        sides = dict(enumerate("ab"))
        kinds = ("factual", "counterfactual")
        try:
            with whole_file(folder / "maps.npz") as temporary, open(temporary, "wb") as file:
                arrays = {
                    f"{kind}_{side}": getattr(self, kind)[i]
                    for kind in ("raw", *kinds)
                    for i, side in sides.items()
                }
                np.savez_compressed(file, **arrays)
            for kind in kinds:
                for i, side in sides.items():
                    with whole_file(folder / f"{kind}_{side}.png") as temporary:
                        laid = plots.blend(self.images[i], getattr(self, kind)[i], self.top)
                        laid.save(temporary, format="PNG")
            figure = self.plot()
            with whole_file(folder / "explanation.png") as temporary:
                figure.savefig(temporary, format="png", dpi=150)
            plt.close(figure)
            with whole_file(folder / "scores.json") as temporary:
                temporary.write_text(json.dumps(self._record(), indent=1), encoding="utf-8")
        except OSError as error:
            raise ExplanationError(
                f"The explanation cannot be written to {folder} ({error}); choose another folder."
            ) from error
        return folder

    def _record(self) -> dict[str, Any]:
        return {
            "dissimilarity": self.dissimilarity,
            "similarity": self.similarity,
            "decision": self.decision,
            "threshold": self.threshold,
            "method": self.method,
            "polarity": self.polarity,
            "blank": self.blank,
            "versions": {"siamcam_lib": version("siamcam_lib"), "torch": torch.__version__},
        }


def explain(
    net: Any,
    a: Any,
    b: Any,
    *,
    method: str | Explainer = "gradcam",
    polarity: str = "decision",
    threshold: float | None = None,
    layer: str | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Explanation | list[Explanation]:
    """Judge and explain a pair of images, or many pairs at once.

    The network is used in evaluation mode and left as it was. For the closed forms each image goes
    through the backbone once, which is never differentiated: with a head that pools and projects
    the maps have a closed form, any other head is differentiated alone. What other methods cost,
    their `cost` says.

    Args:
        net: A trained `SiameseNet`, an `sc.Embedder`, or any other module that maps images
            (B, 3, H, W) to embeddings (B, E), together with `layer`.
        a: A path, PIL image, array (H, W, 3) or tensor (3, H, W); or a list or tensor
            (B, 3, H, W) of them.
        b: Its partner or partners; sizes may differ.
        method: A name in `sc.explainers.names`, or an explainer, as `sc.explainers.get` gives it;
            those that learn from training images are fitted first. ``"gradcam"`` differentiates
            the network's own dissimilarity.
        polarity: One of `POLARITIES`; see `Explanation`.
        threshold: Instead of the network's own; in (0, 1).
        layer: Name of the layer that gives the feature map, for other modules.
        seed: Of methods that draw.
        progress: Show progress, where a method takes long.
        options: For other modules: ``comparison``, ``image_size``, ``mean``, ``std``; see
            `sc.Embedder`.

    Returns:
        One `Explanation` for one pair, a list for a batch.

    Raises:
        ExplanationError: for an unknown method, polarity or layer, a threshold outside (0, 1), an
            empty batch, batches of different lengths, or a network that gives no feature map or
            no embedding.
        ImageError: where an input is no image.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> ex = explain(sc.SiameseNet(image_size=96), images.image(0), images.image(1))
        >>> ex.factual[0].shape == images.image(0).size[::-1]
        True
    """
    seeing = as_explainable(net, layer, **options)
    explainer = method if isinstance(method, Explainer) else explainers.get(method)
    check_polarity(polarity)
    threshold = seeing.threshold if threshold is None else check_threshold(threshold)
    single = not _is_batch(a) and not _is_batch(b)
    lefts, rights = ([x] if not _is_batch(x) else list(x) for x in (a, b))
    if len(lefts) != len(rights) or not lefts:
        raise ExplanationError(
            f"Pairs need as many first as second images, at least one; {len(lefts)} and "
            f"{len(rights)} were given."
        )
    found = []
    for start in range(0, len(lefts), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        first, second = ([as_image(x) for x in side[part]] for side in (lefts, rights))
        pairs = Pairs(seeing, first, second)
        scores = pairs.compared.dissimilarity.tolist()
        raws = explainer(pairs, seed=seed, progress=progress)
        found += [
            finish(pair, (pair[0].size, pair[1].size), y, threshold, raw, explainer.name, polarity)
            for pair, y, raw in zip(zip(first, second, strict=True), scores, raws, strict=True)
        ]
    return found[0] if single else found


def check_polarity(polarity: str) -> None:
    """Raise `ExplanationError`, listing those known, if a polarity is not."""
    if polarity not in POLARITIES:
        raise ExplanationError(
            f"No polarity is called {polarity!r}; known are {', '.join(POLARITIES)}."
        )


def _is_batch(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 4
    one = str | bytes | bytearray | memoryview
    return isinstance(value, Sequence) and not isinstance(value, one)


def finish(
    images: Sequence[Image.Image],
    sizes: Sequence[tuple[int, int]],
    dissimilarity: float,
    threshold: float,
    raw: Tensor,
    method: str,
    polarity: str,
) -> Explanation:
    """The explanation of a pair from its two signed maps (2, h, w).

    Args:
        images: Both pictures, or whatever gives them when asked for an index.
        sizes: Width and height of each.
        dissimilarity: y.
        threshold: From which y on the pair is judged dissimilar.
        raw: Positive speaks for similarity.
        method: How the maps were made.
        polarity: One of `POLARITIES`.
    """
    raw = raw.float()
    full = [stretch(m, size) for m, size in zip(raw, sizes, strict=True)]
    for_similar = tuple(np.maximum(m, 0) for m in full)
    for_dissimilar = tuple(np.maximum(-m, 0) for m in full)
    swap = polarity == "paper" or dissimilarity >= threshold
    factual, counter = (for_dissimilar, for_similar) if swap else (for_similar, for_dissimilar)
    a, b = raw.numpy()
    return Explanation(images, dissimilarity, threshold, (a, b), factual, counter, method, polarity)


def stretch(raw: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A raw map (h, w) at an image's size (width, height): bilinear, before any ReLU; (H, W)."""
    full = torch.nn.functional.interpolate(
        raw[None, None], size=size[::-1], mode="bilinear", align_corners=False
    )
    return full[0, 0].numpy()
