"""Which network a command looks with: a trained one, or ImageNet features as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from siamcam_lib import Embedder, SiameseNet

WARNING = (
    "No --model given: the pictures are compared by ImageNet features, whose threshold "
    "{threshold} is a convention and not calibrated. Maps and order of scores mean something, "
    "the decision little; `siamcam train` learns from a folder what counts as similar."
)


def network(model: Path | None) -> SiameseNet | Embedder:
    """The network of a file, or else pooled ImageNet features compared by their angle; with a word.

    Raises:
        ModelError: if the file is not one that `SiameseNet.save` wrote.
    """
    from siamcam_lib import Embedder, SiameseNet
    from siamcam_lib.processes import processes

    if model is not None:
        return SiameseNet.load(model)
    untrained = Embedder.imagenet()
    if processes().first:
        click.echo(WARNING.format(threshold=untrained.threshold), err=True)
    return untrained
