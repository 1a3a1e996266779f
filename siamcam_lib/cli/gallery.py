"""`siamcam gallery`: the pair explorer of a folder as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from siamcam_lib.cli.frame import (
    PATH,
    as_json,
    loaded,
    model,
    readable,
    seed,
    skip,
    tell,
    working,
    writable,
)
from siamcam_lib.cli.network import network

if TYPE_CHECKING:
    from siamcam_lib.datasets import ImageSet

EXAMPLE = "\b\nExample:\n  siamcam gallery photos -o explorer.html --model model.safetensors"


@click.command(short_help="An explorer page of a folder.", epilog=EXAMPLE)
@click.argument("folder")
@click.option("-o", "--output", type=PATH, required=True, help="Page to write, .html.")
@model
@click.option("--most", type=click.IntRange(2), metavar="N", default=60, show_default=True,
              help="Pictures to choose from; fewer where 3 MB do not hold them.")  # fmt: skip
@click.option(
    "--with-model",
    is_flag=True,
    help="Put the network into the page too, some 22 MB, for its readers' own pictures.",
)
@seed
@skip
@as_json
def gallery(
    folder: str,
    output: Path,
    model: Path | None,
    most: int,
    with_model: bool,
    seed: int,
    skip: bool,
    as_json: bool,
) -> None:
    """Write an explorer of FOLDER: any two pictures, how alike they are, and why.

    The page is one file that needs no network and no server. Of a larger folder, pictures are
    drawn evenly from the classes. With --with-model whoever opens it can compare pictures of their
    own, which stay in their browser.
    """
    writable(output)
    with working() as watched:
        import siamcam_lib as sc

        images = loaded(folder, skip)
        shown = images.subset(evenly(images, most, seed))
        net = network(model)
        made = sc.Gallery.embed(net, shown, progress=watched)
        names = [readable(item) for item in shown.items]
        title = f"{readable(images.name)}: which pictures are alike, and why"
        made.to_html(output, title=title, names=names, model=with_model)
        count = len(made.widget(names=names).view.data["images"])
    record = {
        "format": "siamcam-explorer", "version": 1, "page": str(output), "images": images.name,
        "shown": count, "of": len(images), "calibrated": model is not None,
        "with_model": with_model,
    }  # fmt: skip
    tell(record, as_json, lambda: f"{output} shows {count} of {len(images)} pictures")


def evenly(images: ImageSet, most: int, seed: int) -> list[int]:
    """At most `most` positions, one of each class in turn, drawn within the classes; sorted."""
    import numpy as np

    random = np.random.default_rng(seed)
    rank = np.empty(len(images), np.int64)  # within its class, in a random order
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        rank[members] = random.permutation(len(members))
    return sorted(np.lexsort((images.labels, rank))[:most].tolist())
