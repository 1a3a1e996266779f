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
              help="Pictures to show, 60 at most; fewer where 3 MB do not hold them.")  # fmt: skip
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
    writable(output, "a page (HTML)", ".html", ".htm")
    with working():
        import siamcam_lib as sc
        from siamcam_lib.processes import step
        from siamcam_lib.widgets.pair import MOST

        images = loaded(folder, skip)
        shown = images.subset(evenly(images, min(most, MOST), seed))
        net = network(model)
        bar = step(f"looking at {len(shown)} of {len(images)} pictures")
        made = sc.Gallery.embed(net, shown, progress=bar)
        step("writing the page")
        names = [readable(item) for item in shown.items]
        explorer = made.widget(names=names)
        count = len(explorer.view.data["images"])
        why = why_fewer(count, len(shown), len(images), most)
        title = f"{readable(images.name)}: which pictures are alike, and why"
        title += f" ({count} of {len(images)} pictures)" if why else ""
        if with_model:
            made.to_html(output, title=title, names=names, model=True)
        else:
            explorer.to_html(output, title)
    record = {
        "format": "siamcam-explorer", "version": 1, "page": str(output), "images": images.name,
        "shown": count, "of": len(images), "why_fewer": why,
        "calibrated": model is not None, "with_model": with_model,
    }  # fmt: skip
    said = f"{output} shows {count} of {len(images)} pictures"
    tell(record, as_json, lambda: f"{said}: {why}" if why else said)


def why_fewer(shown: int, drawn: int, of: int, most: int) -> str | None:
    """Why a page does not show all pictures of a folder, in words; None where it does.

    Args:
        shown: Pictures on the page.
        drawn: Those that were to be shown.
        of: Those in the folder.
        most: What was asked for.
    """
    from siamcam_lib.widgets.base import STATE_LIMIT
    from siamcam_lib.widgets.pair import MOST

    if shown < drawn:
        return f"no more fit into the {STATE_LIMIT / 1e6:.1f} MB that a page holds"
    if drawn < of:
        limit = f"--most is {most}" if most <= MOST else f"a page shows {MOST} at most"
        return f"{limit}, drawn evenly from the classes"
    return None


def evenly(images: ImageSet, most: int, seed: int) -> list[int]:
    """At most `most` positions, one of each class in turn, drawn within the classes; sorted."""
    import numpy as np

    random = np.random.default_rng(seed)
    rank = np.empty(len(images), np.int64)  # within its class, in a random order
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        rank[members] = random.permutation(len(members))
    return sorted(np.lexsort((images.labels, rank))[:most].tolist())
