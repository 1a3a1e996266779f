"""Judging models and explanations. Taught in chapter 3 and in the case studies."""

from siamcam_lib.evaluation.faithfulness import (
    area,
    change,
    deletion,
    for_decision,
    infidelity,
    insertion,
    road,
    selectivity,
)
from siamcam_lib.evaluation.league import MEASURES, League, Measure, league, of_another, planted
from siamcam_lib.evaluation.localisation import average_precision, blank, energy, pointing
from siamcam_lib.evaluation.metrics import Report, evaluate, report, score_pairs
from siamcam_lib.evaluation.retrieval import Retrieval, retrieval
from siamcam_lib.evaluation.robustness import (
    Agreement,
    Continuity,
    agreement,
    continuity,
    max_sensitivity,
    randomised_layers,
)
from siamcam_lib.evaluation.statistics import (
    Comparison,
    Estimate,
    Paired,
    compare,
    mean_interval,
    over_seeds,
    paired,
)

__all__ = [
    "MEASURES",
    "Agreement",
    "Comparison",
    "Continuity",
    "Estimate",
    "League",
    "Measure",
    "Paired",
    "Report",
    "Retrieval",
    "agreement",
    "area",
    "average_precision",
    "blank",
    "change",
    "compare",
    "continuity",
    "deletion",
    "energy",
    "evaluate",
    "for_decision",
    "infidelity",
    "insertion",
    "league",
    "max_sensitivity",
    "mean_interval",
    "of_another",
    "over_seeds",
    "paired",
    "planted",
    "pointing",
    "randomised_layers",
    "report",
    "retrieval",
    "road",
    "score_pairs",
    "selectivity",
]
