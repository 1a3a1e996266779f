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

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siamcam_lib import (
        cropping,
        datasets,
        errors,
        evaluation,
        explainers,
        features,
        gradcam,
        losses,
        pairs,
        plots,
        results,
        widgets,
    )
    from siamcam_lib.embedder import Embedder
    from siamcam_lib.evaluation import Report, evaluate
    from siamcam_lib.explanation import Explanation, explain
    from siamcam_lib.exporting import export_onnx
    from siamcam_lib.features import View
    from siamcam_lib.gallery import Gallery
    from siamcam_lib.model import SiameseNet
    from siamcam_lib.report import Audit, audit  # type: ignore[no-redef]  # a function, too
    from siamcam_lib.studies import Study, study
    from siamcam_lib.training import FINETUNE, FROZEN, Fit, Recipe, fit

__version__ = "0.1.0"

HOMES = {
    "embedder": ["Embedder"],
    "evaluation": ["Report", "evaluate"],
    "explanation": ["Explanation", "explain"],
    "exporting": ["export_onnx"],
    "features": ["View"],
    "gallery": ["Gallery"],
    "model": ["SiameseNet"],
    "report": ["Audit", "audit"],
    "studies": ["Study", "study"],
    "training": ["FINETUNE", "FROZEN", "Fit", "Recipe", "fit"],
}
"""Where names come from. Nothing is imported before it is asked for: torch and its kin take
seconds, and ``siamcam --help`` needs none of them."""


def __getattr__(name: str) -> Any:
    home = next((module for module, names in HOMES.items() if name in names), name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{home}")
    found = module if home == name else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "FINETUNE",
    "FROZEN",
    "Audit",
    "Embedder",
    "Explanation",
    "Fit",
    "Gallery",
    "Recipe",
    "Report",
    "SiameseNet",
    "Study",
    "View",
    "audit",
    "cropping",
    "datasets",
    "errors",
    "evaluate",
    "evaluation",
    "explain",
    "explainers",
    "export_onnx",
    "features",
    "fit",
    "gradcam",
    "losses",
    "pairs",
    "plots",
    "results",
    "study",
    "widgets",
]
