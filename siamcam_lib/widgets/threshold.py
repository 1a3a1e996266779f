"""The threshold explorer: where the scores of pairs lie, and what a threshold makes of them.

Used in chapter 3 (contrastive loss) and in the case studies. All scores travel, exactly; counts and
rates are worked out in the page as `siamcam_lib.evaluation` works them out.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import traitlets

from siamcam_lib import plots
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import Report
from siamcam_lib.files import shown
from siamcam_lib.pairs import PairSet
from siamcam_lib.widgets.base import (
    STATE_LIMIT,
    Explorer,
    View,
    packed,
    picture,
    size,
    slider_through,
    source,
)

BINS = np.linspace(0, 1, 41)
"""Edges of the histograms' bars, as in `plots.scores`."""
CANDIDATES, NEAREST, SIDE = 24, 6, 96


class ThresholdView(View):
    """Scores on both sides of a threshold, and how well it parts them.

    Attributes:
        threshold: Dissimilarity from which a pair is judged dissimilar.
    """

    _esm = source("base.js", "threshold.js")
    threshold = traitlets.Float(0.5).tag(sync=True)


def threshold_explorer(report: Report, pairs: PairSet | None = None) -> Explorer:
    """Move the threshold and see which pairs are judged rightly.

    Args:
        report: From `sc.evaluate`.
        pairs: The pairs it was made of, to show those nearest to the threshold: at each
            threshold the 6 nearest of up to 24 that are spread evenly over the scores, half of
            them similar and half dissimilar.

    Raises:
        EvaluationError: if a score lies outside [0, 1], the pairs are not the report's, or there
            are more scores than fit into a page.

    Example:
        >>> from siamcam_lib.evaluation import metrics
        >>> threshold_explorer(metrics.report([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1], 0.35))
        Explorer('Threshold explorer, 4 pairs')
    """
    score, label = report.score, report.label
    if not ((score >= 0) & (score <= 1)).all():
        raise EvaluationError(
            f"The threshold explorer shows dissimilarities in [0, 1]; these scores lie between "
            f"{score.min():.3g} and {score.max():.3g}. Squash them first, d/(1 + d) for example."
        )
    if pairs is not None and not np.array_equal(pairs.label, label):
        raise EvaluationError(
            f"The report is about {len(label)} pairs, and the {len(pairs)} pairs given are not "
            "those; give the pairs that sc.evaluate was given."
        )
    fixed = {
        "score": packed(score, "float64"), "label": packed(label, "uint8"),
        "bars": [np.histogram(score[label == side], BINS)[0].tolist() for side in (0, 1)],
        "own": report.threshold, "nearest": NEAREST,
        "pictures": {}, "candidates": [],
    }  # fmt: skip
    if pairs is not None:
        fixed |= _candidates(score, pairs)
    if (total := size(fixed)) > STATE_LIMIT:
        raise EvaluationError(
            f"{len(score)} scores take {total / 1e6:.1f} MB, a page holds {STATE_LIMIT / 1e6:.1f} "
            "MB of them; evaluate on fewer pairs."
        )
    view = ThresholdView(data=fixed, threshold=report.threshold)
    slider = slider_through(report.threshold, description="threshold", readout_format=".2f")

    def still() -> bytes:
        axis, buffer = plots.scores(replace(report, threshold=view.threshold)), BytesIO()
        figure = axis.get_figure(root=True)
        assert figure is not None
        figure.savefig(buffer, format="png")
        plt.close(figure)
        return buffer.getvalue()

    return Explorer(view, {"threshold": slider}, f"Threshold explorer, {len(score)} pairs", still)


def _candidates(score: np.ndarray, pairs: PairSet) -> dict[str, Any]:
    """Pairs that may be shown, and their pictures; an image of several pairs travels once."""
    images, chosen = pairs.images, spread(score, pairs.label)
    return {
        "candidates": [
            {
                "a": int(pairs.a[k]), "b": int(pairs.b[k]), "pair": k,
                "score": float(score[k]), "label": int(pairs.label[k]),
            }
            for k in chosen
        ],
        "pictures": {
            int(i): picture(images.image(int(i)), SIDE)
            | {"name": shown(images.classes[images.labels[i]])}
            for i in np.unique([pairs.a[chosen], pairs.b[chosen]])
        },
    }  # fmt: skip


def spread(score: np.ndarray, label: np.ndarray, most: int = CANDIDATES) -> list[int]:
    """Up to `most` pairs in order of score, half of each kind, evenly over that kind's scores.

    Example:
        >>> spread(np.array([0.1, 0.11, 0.5, 0.2, 0.9]), np.array([0, 0, 0, 1, 1]), most=4)
        [0, 3, 2, 4]
    """
    chosen: list[int] = []
    for side in (0, 1):
        free = np.flatnonzero(label == side).tolist()
        count = min(most // 2, len(free))
        for target in np.linspace(score[free].min(), score[free].max(), count):
            chosen.append(free.pop(int(np.abs(score[free] - target).argmin())))
    return sorted(chosen, key=lambda k: score[k])
