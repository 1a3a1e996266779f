"""Which network a command looks with: a trained one, or ImageNet features as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from siamcam_lib import Embedder, SiameseNet

BACKBONE = "efficientnet_lite0"
UNCALIBRATED = 0.25
"""Threshold on (1 − cos)/2 of ImageNet features: vectors at 60° to each other. On 160 pictures each
of the paper's flowers, skin and rooms the best is 0.31, 0.21 and 0.24; this one judges 60, 55 and
64 % of pairs rightly, half of them being similar."""
WARNING = (
    "No --model given: the pictures are compared by ImageNet features, whose threshold "
    f"{UNCALIBRATED} is a convention and not calibrated. Maps and order of scores mean something, "
    "the decision little; `siamcam train` learns from a folder what counts as similar."
)


def network(model: Path | None) -> SiameseNet | Embedder:
    """The network of a file, or else pooled ImageNet features compared by their angle; with a word.

    Raises:
        ModelError: if the file is not one that `SiameseNet.save` wrote.
    """
    from torch import nn

    from siamcam_lib import Embedder, SiameseNet, backbones

    if model is not None:
        return SiameseNet.load(model)
    click.echo(WARNING, err=True)
    found = backbones.create(BACKBONE)
    pooled = nn.Sequential(found.module, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    options = {"mean": found.mean, "std": found.std, "threshold": UNCALIBRATED}
    return Embedder(pooled, "0", comparison="cosine", **options)
