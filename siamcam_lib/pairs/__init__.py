"""From labelled images to pairs that can be learned from and judged: split first, then pair.

Taught in chapter 1 (pairs).
"""

from siamcam_lib.pairs.duplicates import Duplicates, find_duplicates, join_groups
from siamcam_lib.pairs.leaks import LeakReport, check_split, find_leaks
from siamcam_lib.pairs.sampling import PairSet, all_pairs, sample
from siamcam_lib.pairs.splitting import Split, forget_groups, split

__all__ = [
    "Duplicates",
    "LeakReport",
    "PairSet",
    "Split",
    "all_pairs",
    "check_split",
    "find_duplicates",
    "find_leaks",
    "forget_groups",
    "join_groups",
    "sample",
    "split",
]
