"""How sure a number is, and whether one model is better than another.

Taught in the case studies and in the chapter on cropping. A mean comes with a bootstrap interval, a
mean over seeds with Student's; two models judged on the same pairs are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation.metrics import LEVEL, Report, exact_at_end, weighted_auc


class Estimate(NamedTuple):
    """A number and its 95% interval.

    Example:
        >>> print(Estimate(0.9, 0.85, 0.94))
        0.900 [0.850, 0.940]
    """

    value: float
    low: float
    high: float

    def side(self, decimals: int = 3) -> int:
        """On which side of 0 the whole interval lies: 1 above, −1 below, 0 where it holds 0.

        A bound that is 0 with so many decimals counts as 0, so that what is said of an interval
        agrees with what is printed of it.

        Args:
            decimals: With how many the bounds are printed.

        Example:
            >>> gain = Estimate(0.02, 0.0004, 0.05)
            >>> f"{gain:+.3f}", gain.side(), gain.side(4)
            ('+0.020 [+0.000, +0.050]', 0, 1)
        """
        return (round(self.low, decimals) > 0) - (round(self.high, decimals) < 0)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]" if spec else str(self)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    cluster: Sequence[int] | np.ndarray | None = None,
    *,
    within: tuple[float, float] = (-np.inf, np.inf),
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean of `values` with its bootstrap interval.

    Values that are all the same leave a bootstrap without width. Where they are shares, say so by
    `within`: if all are 0, or all are 1, the interval is then the exact one of Clopper and Pearson
    1934, doi:10.1093/biomet/26.4.404, of as many observations as there are clusters.

    Args:
        values: (m,) finite numbers.
        cluster: (m,) what is drawn together, because it is not independent: the anchor of a pair,
            or the picture. By default every value on its own.
        within: What the mean can be at all, (0, 1) for a share. It changes no interval that has a
            width.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        EvaluationError: if there is no value, one is not finite, or `cluster` has another length.

    Example:
        >>> print(mean_interval([1, 0, 1, 1, 0, 1, 1, 1]))
        0.750 [0.375, 1.000]
        >>> print(mean_interval([1, 1, 1, 1, 1, 1, 1, 1], within=(0, 1)))
        1.000 [0.631, 1.000]
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise EvaluationError(
            f"A mean needs a list of finite numbers; {values.size} were given, "
            f"{int((~np.isfinite(values)).sum())} of them not finite."
        )
    drawn, cluster = _draws(np.arange(len(values)) if cluster is None else cluster, resamples, seed)
    if len(cluster) != len(values):
        raise EvaluationError(f"{len(values)} values and {len(cluster)} clusters were given.")
    total = np.bincount(cluster, values, minlength=drawn.shape[1])
    means = drawn @ total / (drawn @ np.bincount(cluster, minlength=drawn.shape[1]))
    value, (low, high) = float(values.mean()), _quantiles(means)
    if value == low == high:
        low, high = exact_at_end(value, drawn.shape[1], within)
    return Estimate(value, low, high)


def over_seeds(
    values: Sequence[float] | np.ndarray, within: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """Mean over trainings with different seeds, and Student's interval of that mean.

    The test parts of different seeds overlap, so the interval is a little too narrow. Where all
    seeds give one value it has no width: it tells how far trainings differ, and not how far each
    could be wrong, which the interval of its own `Report` does.

    Args:
        values: One a seed.
        within: What the mean can be at all, (0, 1) for an accuracy: the interval ends there.

    Raises:
        EvaluationError: if fewer than two values are given, or one is not finite.

    Example:
        >>> print(over_seeds([0.90, 0.92, 0.91]))
        0.910 [0.885, 0.935]
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise EvaluationError(f"An interval over seeds needs two finite numbers, not {values}.")
    mean, error = float(values.mean()), stats.sem(values)
    if not error:
        return Estimate(mean, mean, mean)
    low, high = stats.t.interval(LEVEL, len(values) - 1, mean, error)
    return Estimate(mean, float(max(low, within[0])), float(min(high, within[1])))


@dataclass(frozen=True)
class Comparison:
    """A second model against a first one, on the same pairs.

    Attributes:
        accuracy: Gain in accuracy (second less first) with its interval.
        auc: Gain in AUC with its interval.
        gained: Pairs that only the second judges rightly.
        lost: Pairs that only the first judges rightly.
        p: Two-sided p-value of McNemar's exact test: how often as uneven a parting of the gained
            and lost pairs, or a more uneven one, comes about by chance.
    """

    accuracy: Estimate
    auc: Estimate
    gained: int
    lost: int
    p: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:+.3f}, AUC {self.auc:+.3f};\n"
            f"{self.gained} pairs gained, {self.lost} lost, p = {self.p:.2g}"
        )

    __repr__ = __str__


def compare(
    first: Report | Sequence[Report],
    second: Report | Sequence[Report],
    anchor: Sequence[Any] | np.ndarray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Is the second model better than the first? McNemar's test and paired bootstrap.

    Args:
        first: Report of the first model, or one report a seed.
        second: The same of the second, on the same pairs in the same order.
        anchor: For each report (m,) what is drawn together in the bootstrap, under one name in all
            reports: the picture each pair belongs to. By default each pair on its own. McNemar's
            test takes pairs as independent whatever is given; where they are not, trust the
            interval.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        EvaluationError: if the reports are not of the same pairs.

    Example:
        >>> from siamcam_lib.evaluation import report
        >>> label = np.array([0, 0, 0, 1, 1, 1])
        >>> one = report(np.array([0.1, 0.6, 0.2, 0.9, 0.8, 0.3]), label, 0.5)
        >>> two = report(np.array([0.1, 0.4, 0.2, 0.9, 0.8, 0.7]), label, 0.5)
        >>> found = compare(one, two)
        >>> found.gained, found.lost, found.p
        (2, 0, 0.5)
    """
    one, two = ([r] if isinstance(r, Report) else list(r) for r in (first, second))
    anchors: list[Any] | None = None
    if anchor is not None:
        anchors = [anchor] if isinstance(first, Report) else list(anchor)
    if len(one) != len(two) or any(
        not np.array_equal(a.label, b.label) for a, b in zip(one, two, strict=True)
    ):
        raise EvaluationError(
            f"Reports of the same pairs are needed, in the same order; {len(one)} and {len(two)} "
            "reports were given, and their labels differ."
        )
    if anchors is None:
        ends = np.cumsum([0] + [len(r.label) for r in one])
        anchors = [np.arange(start, end) for start, end in zip(ends, ends[1:], strict=False)]
    if [len(a) for a in anchors] != [len(r.label) for r in one]:
        raise EvaluationError("An anchor is needed for each pair of each report.")
    right = [np.concatenate([_right(r) for r in reports]) for reports in (one, two)]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    together = np.concatenate(anchors)
    drawn, cluster = _draws(together, resamples, seed)
    change = right[1].astype(float) - right[0]
    accuracy = mean_interval(change, together, resamples=resamples, seed=seed)
    points, draws, start = [], [], 0
    for a, b in zip(one, two, strict=True):
        rows = cluster[start : start + len(a.label)]
        start += len(a.label)
        points.append(b.auc - a.auc)
        weight, truth = drawn[:, rows].astype(float), a.label == 1
        draws.append(weighted_auc(b.score, truth, weight) - weighted_auc(a.score, truth, weight))
    auc = Estimate(float(np.mean(points)), *_quantiles(np.mean(draws, axis=0)))
    return Comparison(accuracy, auc, gained, lost, float(p))


class Paired(NamedTuple):
    """A second set of values against a first one, of the same pairs.

    Attributes:
        difference: Mean of second less first, with its interval.
        p: Two-sided p-value of Wilcoxon's signed-rank test: how often differences as lopsided, or
            more so, come about by chance.

    Example:
        >>> print(Paired(Estimate(0.1, 0.05, 0.15), 0.004))
        +0.100 [+0.050, +0.150], p = 0.004
    """

    difference: Estimate
    p: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f}, p = {self.p:.2g}"


def paired(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    cluster: Sequence[int] | np.ndarray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Paired:
    """Do two measures of the same pairs differ? Bootstrap interval and Wilcoxon's test.

    Args:
        first: (m,) finite numbers: a measure of one explainer, say.
        second: (m,) the same of another, on the same pairs in the same order.
        cluster: (m,) what is drawn together, as in `mean_interval`. Wilcoxon's test then takes
            one value a cluster, its mean difference.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        EvaluationError: if there are not as many values in both, none, or one is not finite.

    Example:
        >>> print(paired([0.2, 0.4, 0.3, 0.5, 0.1, 0.2], [0.3, 0.6, 0.6, 0.9, 0.6, 0.8]))
        +0.350 [+0.233, +0.483], p = 0.031
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape:
        raise EvaluationError(
            f"Values of the same pairs are needed; {first.size} and {second.size} were given."
        )
    apart = second - first
    difference = mean_interval(apart, cluster, resamples=resamples, seed=seed)
    if cluster is not None:
        _, member = np.unique(np.asarray(cluster), return_inverse=True)
        apart = np.bincount(member, apart) / np.bincount(member)
    p = float(stats.wilcoxon(apart).pvalue) if apart.any() else 1.0
    return Paired(difference, p)


def _right(report: Report) -> np.ndarray:
    return (report.score >= report.threshold) == (report.label == 1)


def _draws(cluster: Sequence[int] | np.ndarray, resamples: int, seed: int):
    """How often each cluster is drawn, (resamples, clusters), and each value's cluster (m,)."""
    _, cluster = np.unique(np.asarray(cluster), return_inverse=True)
    count = int(cluster.max()) + 1
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=resamples), cluster


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
