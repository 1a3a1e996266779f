"""Explainable image similarity: a Siamese network says how alike two images are, heatmaps say why.

The library behind the book of the same name; each module is named as the chapter that teaches it.
The way of a photograph: `datasets` → `pairs` → `model` → `training` → `explain` → `plots`.

Example:
    >>> import siamcam_lib as sc
    >>> images = sc.datasets.load("scenes/flowers", n=100)
    >>> split = sc.pairs.split(images, seed=0)
    >>> net = sc.SiameseNet("efficientnet_lite0", image_size=96)
    >>> fit = sc.fit(net, split, seed=0, recipe=sc.Recipe(2, 32, steps=2), progress=False)
    >>> sc.explain(net, images.image(0), images.image(1)).decision in ("similar", "dissimilar")
    True
"""

from siamcam_lib import (
    cropping,
    datasets,
    errors,
    evaluation,
    explainers,
    gradcam,
    losses,
    pairs,
    plots,
    results,
    widgets,
)
from siamcam_lib.embedder import Embedder
from siamcam_lib.evaluation import Report, evaluate
from siamcam_lib.explain import Explanation, explain
from siamcam_lib.features import View
from siamcam_lib.gallery import Gallery
from siamcam_lib.model import SiameseNet
from siamcam_lib.study import Study, study
from siamcam_lib.training import FINETUNE, FROZEN, Fit, Recipe, fit

__version__ = "0.1.0"

__all__ = [
    "FINETUNE",
    "FROZEN",
    "Embedder",
    "Explanation",
    "Fit",
    "Gallery",
    "Recipe",
    "Report",
    "SiameseNet",
    "Study",
    "View",
    "cropping",
    "datasets",
    "errors",
    "evaluate",
    "evaluation",
    "explain",
    "explainers",
    "fit",
    "gradcam",
    "losses",
    "pairs",
    "plots",
    "results",
    "study",
    "widgets",
]
