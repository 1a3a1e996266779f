"""How well a network tells similar from dissimilar pairs, with intervals.

Taught in chapter 3 (contrastive loss) and in the case studies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from siamcam_lib.errors import EvaluationError
from siamcam_lib.features import FeatureCache, pooled_features
from siamcam_lib.model import SiameseNet
from siamcam_lib.pairs import PairSet

LEVEL = 0.95
METRICS = ("accuracy", "auc", "precision", "recall")
PAIRS_AT_ONCE = 65_536
"""Pairs whose embeddings are laid out side by side; at E = 256 they take 200 MB."""


@dataclass(frozen=True)
class Report:
    """Metrics of scored pairs.

    Attributes:
        accuracy: Share of pairs judged rightly at the threshold.
        auc: Area under the ROC curve of the dissimilarity itself, not of thresholded decisions.
        precision: Mean over the two kinds of pair of the share of such judgements that are right.
        recall: Mean over the two kinds of pair of the share of them that is recognised. The
            paper's Table 1 averages the same way: its recall equals its accuracy.
        intervals: For each metric its 95% bootstrap interval (low, high); for one that is 0 or 1
            see `report`.
        score: (m,) dissimilarities.
        label: (m,) 0 similar, 1 dissimilar.
        threshold: Dissimilarity from which a pair is judged dissimilar.
    """

    accuracy: float
    auc: float
    precision: float
    recall: float
    intervals: dict[str, tuple[float, float]]
    score: np.ndarray
    label: np.ndarray
    threshold: float

    @property
    def confusion(self) -> np.ndarray:
        """(2, 2) counts; row is the truth, column the judgement; 0 similar, 1 dissimilar."""
        judged = (self.score >= self.threshold).astype(int)
        return np.bincount(self.label * 2 + judged, minlength=4).reshape(2, 2)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter((name, getattr(self, name)) for name in METRICS)

    def __str__(self) -> str:
        rows = [f"{len(self.label)} pairs, dissimilar from {self.threshold:.3f} on"]
        for name, value in self:
            low, high = self.intervals[name]
            rows.append(f"{name:<10}{value:.3f}  [{low:.3f}, {high:.3f}]")
        return "\n".join(rows)

    __repr__ = __str__


def score_pairs(
    net: SiameseNet, pairs: PairSet, *, cache: FeatureCache | None = None, progress: bool = True
) -> np.ndarray:
    """Dissimilarity of every pair: (m,) float64.

    Each image is embedded once. Distances are taken in blocks of pairs, so that memory does not
    grow with m × E; where the blocks begin changes a score by float32 rounding at most.
    """
    pooled = pooled_features(net, pairs.images, cache=cache, progress=progress)
    with torch.inference_mode():
        e = net.embed_pooled(pooled.to(net.device))
        starts = range(0, max(1, len(pairs)), PAIRS_AT_ONCE)
        blocks = [slice(start, start + PAIRS_AT_ONCE) for start in starts]
        distances = [net.distance(e[pairs.a[part]], e[pairs.b[part]]) for part in blocks]
        # float64 only on the CPU: not every device has it
        return net.dissimilarity(torch.cat(distances)).cpu().double().numpy()


def evaluate(
    net: SiameseNet,
    pairs: PairSet,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    cache: FeatureCache | None = None,
    progress: bool = True,
) -> Report:
    """Accuracy, AUC, precision and recall of `net` on `pairs`, with 95% intervals.

    Args:
        net: A trained and calibrated network.
        pairs: From `sc.pairs.sample` on a part the network has not seen.
        bootstrap: Resamples; anchors are drawn, each with its pairs, since pairs of one anchor
            are not independent. What is perfect has another interval, see `report`.
        seed: Of the resampling.
        cache: Feature cache; by default the user's.
        progress: Show a progress bar while features are computed.

    Raises:
        EvaluationError: if only one kind of pair is there, or a score is not finite.

    Example:
        >>> import siamcam_lib as sc
        >>> pairs = sc.pairs.sample(sc.datasets.load("scenes/flowers", n=10), seed=0)
        >>> report = evaluate(sc.SiameseNet(image_size=96), pairs, bootstrap=50, progress=False)
        >>> 0 <= report.auc <= 1
        True
    """
    score = score_pairs(net, pairs, cache=cache, progress=progress)
    return report(score, pairs.label, net.threshold, pairs.a, bootstrap=bootstrap, seed=seed)


def report(
    score: np.ndarray,
    label: np.ndarray,
    threshold: float,
    anchor: np.ndarray | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Report:
    """The metrics of given scores.

    Where all pairs are judged rightly every resample says 1, and the bootstrap knows no doubt. Then
    the interval is the exact one of `exact_at_end`, of as many observations as there are anchors;
    for AUC, precision and recall, which need both kinds of pair, as many as have a pair of the
    rarer kind. The same holds where a metric is 0.

    Args:
        score: (m,) dissimilarities.
        label: (m,) 0 similar, 1 dissimilar; both must occur.
        threshold: Scores at or above it are judged dissimilar.
        anchor: (m,) what is resampled together; by default every pair on its own.
        bootstrap: Resamples.
        seed: Of the resampling.

    Raises:
        EvaluationError: as `evaluate`.

    Example:
        >>> report(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 0, 1, 1]), 0.35).accuracy
        0.5
        >>> perfect = report(np.repeat([0.1, 0.9], 18), np.repeat([0, 1], 18), 0.5)
        >>> print("{:.3f} to {:.3f}".format(*perfect.intervals["accuracy"]))
        0.903 to 1.000
    """
    score, label = np.asarray(score, float), np.asarray(label, np.int64)
    if not np.isfinite(score).all():
        raise EvaluationError(
            f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite; the "
            "network's weights are damaged or its training diverged."
        )
    if set(np.unique(label)) != {0, 1}:
        raise EvaluationError(
            "Metrics need similar (0) and dissimilar (1) pairs, but the labels are "
            f"{sorted(set(label.tolist()))}."
        )
    anchor = np.arange(len(label)) if anchor is None else np.asarray(anchor)
    _, cluster = np.unique(anchor, return_inverse=True)
    count = int(cluster.max()) + 1
    random = np.random.default_rng(seed)
    drawn = random.multinomial(count, np.full(count, 1 / count), size=bootstrap)
    point = metrics(score, label, threshold, np.ones((1, len(label))))
    resampled = metrics(score, label, threshold, drawn[:, cluster].astype(float))
    found = {name: float(values[0]) for name, values in point.items()}
    of_rarer = min(len(np.unique(cluster[label == kind])) for kind in (0, 1))
    intervals = {}
    for name, values in resampled.items():
        low, high = map(float, np.nanquantile(values, [0.025, 0.975]))
        if found[name] == low == high:
            low, high = exact_at_end(low, count if name == "accuracy" else of_rarer)
        intervals[name] = (low, high)
    return Report(**found, intervals=intervals, score=score, label=label, threshold=threshold)


def exact_at_end(
    value: float, clusters: int, within: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """The 95% interval of a mean whose bootstrap has no width, if it lies at an end of its range.

    n independent observations that are all right leave open every share p with pⁿ ≥ 0.025, so that
    the interval reaches from 0.025^(1/n) to 1, and from 0 to 1 − 0.025^(1/n) if all are wrong
    (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404). It holds for the mean of any values
    in [0, 1], which is no less than the share of ones among them, and so for other ranges.

    Args:
        value: Of the mean, and of every resample.
        clusters: How many are independent.
        within: What the mean can be at all. A value that is neither end has no such interval and
            is given back twice.

    Example:
        >>> low, high = exact_at_end(1.0, 36)
        >>> round(low, 3), high
        (0.903, 1.0)
        >>> exact_at_end(0.5, 36)
        (0.5, 0.5)
    """
    if value not in within:
        return value, value
    hits = clusters if value == within[1] else 0
    exact = stats.binomtest(hits, clusters).proportion_ci(LEVEL, method="exact")
    low, high = (within[0] + (within[1] - within[0]) * share for share in (exact.low, exact.high))
    return float(low), float(high)


def metrics(
    score: np.ndarray, label: np.ndarray, threshold: float, weight: np.ndarray
) -> dict[str, np.ndarray]:
    """The four metrics under many weightings at once: weight (r, m) → (r,) each."""
    judged = score >= threshold
    truth = label == 1

    def total(mask: np.ndarray) -> np.ndarray:
        return weight[:, mask].sum(axis=1)

    with np.errstate(invalid="ignore", divide="ignore"):
        right = {0: total(~truth & ~judged), 1: total(truth & judged)}
        recall = [right[0] / total(~truth), right[1] / total(truth)]
        # A judgement that was never made cannot be wrong: its precision counts as 0, as usual.
        precision = [
            np.nan_to_num(right[0] / total(~judged)), np.nan_to_num(right[1] / total(judged)),
        ]  # fmt: skip
        return {
            "accuracy": (right[0] + right[1]) / weight.sum(axis=1),
            "auc": weighted_auc(score, truth, weight),
            "precision": (precision[0] + precision[1]) / 2,
            "recall": (recall[0] + recall[1]) / 2,
        }


def weighted_auc(score: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Area under the ROC curve under many weightings at once, ties counted half: (r,)."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    up = np.add.reduceat((weight * truth)[:, order], starts, axis=1)  # per distinct score
    down = np.add.reduceat((weight * ~truth)[:, order], starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
