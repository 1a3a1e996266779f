"""What a network gets right and wrong on a set of pictures, as numbers and as a page."""

from siamcam_lib.report.audit import (
    Audit,
    Check,
    ClassPair,
    Evidence,
    HardPair,
    audit,
    calibration_error,
    checks,
    class_pairs,
    evidence,
)
from siamcam_lib.report.page import pair_page

__all__ = [
    "Audit",
    "Check",
    "ClassPair",
    "Evidence",
    "HardPair",
    "audit",
    "calibration_error",
    "checks",
    "class_pairs",
    "evidence",
    "pair_page",
]
