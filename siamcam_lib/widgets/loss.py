"""The loss explorer: what the contrastive loss asks of pairs, with and without a bounded output.

Used in chapter 3 (contrastive loss). The formula is one, `siamcam_lib.losses.contrastive`; what
differs is D: the raw distance d, or the paper's output y = σ(w_y d + c), which stays below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import ipywidgets
import matplotlib.pyplot as plt
import torch
import traitlets

from siamcam_lib.errors import EvaluationError
from siamcam_lib.losses import contrastive
from siamcam_lib.plots import DISSIMILAR, NEUTRAL, SIMILAR, WIDTH
from siamcam_lib.widgets.base import Explorer, View, source

FARTHEST = 2.5
"""Where the axis of distances ends, and the margin's slider."""
POINTS = ((0.5, 0), (1.4, 0), (0.6, 1), (1.7, 1))


class LossView(View):
    """Curves of the loss of similar and dissimilar pairs, and some pairs on them.

    Attributes:
        margin: m, from which on a dissimilar pair costs nothing.
    """

    _esm = source("base.js", "loss.js")
    margin = traitlets.Float(2.0).tag(sync=True)


def loss_explorer(
    points: Sequence[tuple[float, int]] = POINTS,
    *,
    margin: float = 2.0,
    slope: float = 4.0,
    offset: float = -4.0,
) -> Explorer:
    """Move pairs and the margin, and see loss and gradient on the distance and on the output.

    Args:
        points: Pairs to begin with: distance d in [0, 2.5] and label, 0 similar, 1 dissimilar.
        margin: m to begin with, in (0, 2.5]; the paper's is 2.
        slope: w_y of the output y = σ(w_y d + c); positive.
        offset: c of the output.

    Raises:
        EvaluationError: if a pair, the margin or the slope is out of range.

    Example:
        >>> loss_explorer([(0.5, 0), (1.0, 1)])
        Explorer('Loss explorer, 2 pairs')
    """
    pairs = [(float(d), int(label)) for d, label in points]
    if not pairs or any(not 0 <= d <= FARTHEST or label not in (0, 1) for d, label in pairs):
        raise EvaluationError(
            f"Points are pairs (d, label), d in [0, {FARTHEST}] and label 0 (similar) or 1 "
            f"(dissimilar), at least one; {list(points)!r} was given."
        )
    if not 0 < margin <= FARTHEST or not slope > 0:
        raise EvaluationError(
            f"margin lies in (0, {FARTHEST}] and slope is positive; {margin!r} and {slope!r} were "
            "given."
        )
    fixed = {"points": pairs, "slope": float(slope), "offset": float(offset), "end": FARTHEST}
    view = LossView(data=fixed, margin=float(margin))
    slider = ipywidgets.FloatSlider(
        min=0.1, max=FARTHEST, step=0.05, description="margin m", readout_format=".2f"
    )

    def still() -> bytes:
        return _still(pairs, view.margin, float(slope), float(offset))

    return Explorer(view, {"margin": slider}, f"Loss explorer, {len(pairs)} pairs", still)


def _still(pairs: Sequence[tuple[float, int]], margin: float, slope: float, offset: float) -> bytes:
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3), sharey=True, layout="constrained")
    d, label = torch.tensor(pairs, dtype=torch.float64).T
    y = torch.sigmoid(slope * d + offset)
    names = ("margin loss: D is the distance d", "paper’s loss: D is the output y, below 1")
    for axis, points, name in zip(axes, (d, y), names, strict=True):
        x = torch.linspace(0, FARTHEST, 251, dtype=torch.float64)
        for side, colour in enumerate((SIMILAR, DISSIMILAR)):
            curve = contrastive(x, torch.full_like(x, side), margin)
            axis.plot(x, curve, color=colour, label=("similar", "dissimilar")[side])
            here = label == side
            axis.plot(points[here], contrastive(points, label, margin)[here], "o", color=colour)
        axis.set(xlabel="D", ylim=(0, FARTHEST**2 / 2), xlim=(0, FARTHEST))
        axis.set_title(name, fontsize=10)
    axes[0].set(ylabel="loss")
    axes[0].legend(frameon=False)
    axes[1].axvspan(0, 1, color=NEUTRAL, alpha=0.2)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
