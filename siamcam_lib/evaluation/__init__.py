"""Judging models and explanations. Taught in chapter 3 and in the case studies."""

from siamcam_lib.evaluation.metrics import Report, evaluate, report, score_pairs
from siamcam_lib.evaluation.statistics import (
    Comparison,
    Estimate,
    compare,
    mean_interval,
    over_seeds,
)

__all__ = [
    "Comparison",
    "Estimate",
    "Report",
    "compare",
    "evaluate",
    "mean_interval",
    "over_seeds",
    "report",
    "score_pairs",
]
