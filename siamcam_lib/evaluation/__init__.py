"""Judging models and explanations. Taught in chapter 3 and in the case studies."""

from siamcam_lib.evaluation.metrics import Report, evaluate, report, score_pairs

__all__ = ["Report", "evaluate", "report", "score_pairs"]
