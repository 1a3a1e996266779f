"""`siamcam embed`: a folder of class folders in, a gallery on disk out, however many pictures."""

from __future__ import annotations

import time
from pathlib import Path

import click

from siamcam_lib.cli.frame import PATH, as_json, loaded, model, skip, tell, working, writable
from siamcam_lib.cli.network import network

EXAMPLE = """\b
Examples:
  siamcam embed photos -o photos.gallery --model model.safetensors
  torchrun --nproc-per-node=2 -m siamcam_lib embed photos -o photos.gallery
  srun --kill-on-bad-exit=1 siamcam embed photos -o photos.gallery
"""


@click.command(short_help="Look at a folder once, for a gallery.", epilog=EXAMPLE)
@click.argument("folder")
@click.option("-o", "--output", type=PATH, required=True, help="Folder of the gallery.")
@model
@click.option("--batch", type=click.IntRange(1), metavar="N", default=32, show_default=True,
              help="Pictures that go through the network together.")  # fmt: skip
@click.option("--shard", type=click.IntRange(1), metavar="N", default=1024, show_default=True,
              help="Pictures in a file: what an interruption costs at most.")  # fmt: skip
@skip
@as_json
def embed(
    folder: str, output: Path, model: Path | None, batch: int, shard: int, skip: bool, as_json: bool
) -> None:
    """Look at every picture of FOLDER once and write a gallery, which Gallery.open reads.

    FOLDER holds one folder for each class, or is the name of a data set.
    An interrupted call is taken up by calling again: finished shards whose pictures have not
    changed are not computed again. Processes that torchrun or srun starts with this command share
    the work, a GPU for each where there are GPUs.
    """
    if not (output / "gallery.json").is_file():  # one that is finished may be of a read-only disk
        writable(output / "gallery.json")
    start = time.perf_counter()
    with working():
        images = loaded(folder, skip, decode=False)  # each is decoded once, later
        from siamcam_lib import embedding
        from siamcam_lib.embedder import as_explainable
        from siamcam_lib.looking import Pictures
        from siamcam_lib.processes import processes, step

        seeing = as_explainable(network(model))
        bar = step(f"looking at {len(images)} pictures", processes().first)
        done = embedding.embed(
            output, seeing, Pictures(images),
            batch_size=batch, images_per_shard=shard, progress=bar,
        )  # fmt: skip
    if not done.first:
        return
    seconds = time.perf_counter() - start
    record = {
        "format": "siamcam-embedding", "version": 1, "gallery": str(output), "images": images.name,
        "count": done.images, "looked_at": done.looked_at, "shards": done.shards,
        "processes": done.processes, "calibrated": model is not None, "seconds": seconds,
    }  # fmt: skip
    many = "" if done.processes == 1 else f" by {done.processes} processes"
    tell(record, as_json, lambda: (
        f"{output} holds {done.images} pictures; {done.looked_at} of them were looked at in "
        f"{seconds:.0f} s{many}"
    ))  # fmt: skip
