"""Drawn scenes with planted truth: what the book runs on when nothing has been downloaded.

Three kinds mirror the three case studies (flowers, lesions, rooms). Every picture comes with exact
masks of its parts, so that a heatmap can be held to what really decided. Chapter 1 (pairs) shows
them; every later chapter uses them where the photographs are not there.
"""

from siamcam_lib.datasets.scenes.painting import (
    KINDS,
    Scene,
    class_names,
    paint,
    pair,
    part_names,
)
from siamcam_lib.datasets.scenes.sets import SceneSource, scenes

__all__ = ["KINDS", "Scene", "SceneSource", "class_names", "paint", "pair", "part_names", "scenes"]
