"""Explorers: figures that answer in the reader's browser, with a kernel and without one.

Used by every chapter. Each is a box of standard controls linked to one view of our own, which holds
all the data it needs and does the arithmetic itself.
"""

from siamcam_lib.portable import offer
from siamcam_lib.widgets.base import Explorer, View
from siamcam_lib.widgets.crop import crop_explorer
from siamcam_lib.widgets.league import league_table
from siamcam_lib.widgets.loss import loss_explorer
from siamcam_lib.widgets.pair import pair_explorer, to_html
from siamcam_lib.widgets.steps import steps_explorer
from siamcam_lib.widgets.threshold import threshold_explorer

__all__ = [
    "Explorer",
    "View",
    "crop_explorer",
    "league_table",
    "loss_explorer",
    "offer",
    "pair_explorer",
    "steps_explorer",
    "threshold_explorer",
    "to_html",
]
