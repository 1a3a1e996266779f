"""Where the images come from: drawn scenes, the paper's photographs, or a reader's own folder.

Taught in chapter 1 (pairs). Whatever its origin, a data set is an `ImageSet`: labelled images
that are read only when asked for.
"""

from siamcam_lib.datasets import images, scenes
from siamcam_lib.datasets.catalogue import available, data_home, load, names, resolve
from siamcam_lib.datasets.download import fetch
from siamcam_lib.datasets.folders import load_folder
from siamcam_lib.datasets.imageset import ImageSet

__all__ = [
    "ImageSet",
    "available",
    "data_home",
    "fetch",
    "images",
    "load",
    "load_folder",
    "names",
    "resolve",
    "scenes",
]
